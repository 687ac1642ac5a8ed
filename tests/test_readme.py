"""README.md, README_zh.md and docs/: what they name exists, and both languages say the same."""

import dataclasses
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from nest_hf.configuration_nest import PRESETS
from nest_hf.stages import read_recipe

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_zh.md")
PAGES = (*READMES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SCRIPT = re.compile(r"^(?:training|evaluation)/\w+\.py$")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    return FENCE.sub("", read(page))


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ .+$", prose(page), re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, no punctuation, hyphens for blanks."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def commands(page: str) -> list[list[str]]:
    """The words of every command in a shell block, comments left out."""
    found = []
    for language, block in FENCE.findall(read(page)):
        if language in ("bash", "bat"):
            lines = block.replace("\\\n", " ").replace("\\", "/").splitlines()
            found += [words for line in lines if (words := shlex.split(line, comments=True))]
    return found


@cache
def options(script: str) -> frozenset[str]:
    """What a script takes: fields of the argument dataclasses that it imports or defines, and argparse's options."""
    path = ROOT / script
    source = path.read_text(encoding="utf-8")
    names = set(re.findall(r'add_argument\(\s*"--(\w+)"', source))
    if "parse_arguments(" in source or "HfArgumentParser" in source:
        spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for value in vars(module).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value):
                names.update(field.name for field in dataclasses.fields(value) if field.init)
    return frozenset(names)


@cache
def launcher_options(launcher: str) -> frozenset[str]:
    parser = launch_command_parser() if launcher == "accelerate" else get_args_parser()
    return frozenset(flag.lstrip("-").replace("-", "_") for flag in parser._option_string_actions)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if fragment:
            linked = file.resolve().relative_to(ROOT).as_posix()
            assert fragment in map(anchor, headings(linked)), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_names_scripts_files_and_options_that_exist(page):
    for words in commands(page):
        place = next((i for i, word in enumerate(words) if SCRIPT.match(word)), None)
        modules = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"]
        for word in words:
            if word.startswith("configs/"):
                assert (ROOT / word).exists(), f"{page}: {word}"
        if place is None:
            for module in (module for module in modules if module.startswith("nest_hf.")):
                known = options(module.replace(".", "/") + ".py")
                assert {word[2:] for word in words if word.startswith("--")} <= known, f"{page}: {' '.join(words)}"
            continue
        script = words[place]
        assert (ROOT / script).exists(), f"{page}: {script}"
        given = {word[2:].partition("=")[0] for word in words[place:] if word.startswith("--")}
        assert given <= options(script), f"{page}: {script} has no {given - options(script)}"
        before = {word[2:].replace("-", "_") for word in words[:place] if word.startswith("--")}
        launcher = "torchrun" if "torchrun" in words[0] else "accelerate"
        assert before <= launcher_options(launcher), f"{page}: {before - launcher_options(launcher)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_the_text_is_one_of_some_script(page):
    scripts = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("[te]*/*.py") if path.parent.name != "tests"]
    modules = [f"nest_hf/{name}.py" for name in ("convert_nemo", "convert_fun_asr")]
    known = set().union(*map(options, (*scripts, *modules)), *map(launcher_options, ("accelerate", "torchrun")))
    known |= {"trained_model", "recordings"}  # of tests/conftest.py
    spans = re.findall(r"`([^`]+)`", prose(page))
    named = {name for span in spans for name in re.findall(r"(?<![\w-])--([a-z_]+)(?![\w-])", span)}
    assert named - known - {"help"} == set()


def test_both_languages_have_the_same_sections_and_links():
    levels, targets = [], []
    for page in READMES:
        levels.append([heading.split(" ")[0] for heading in headings(page)])
        files = [target.partition("#")[0] for target in LINK.findall(prose(page))]
        own = {"docs/chain_zh.svg": "docs/chain.svg", "README_zh.md": "", "README.md": ""}
        targets.append(sorted({own.get(file, file) for file in files}))
    assert levels[0] == levels[1]
    assert targets[0] == targets[1]


def test_both_languages_have_the_same_code_and_tables():
    """But for the words of comments; a table has as many rows and columns."""
    blocks, tables = [], []
    for page in READMES:
        blocks.append([(kind, re.sub(r" *# .*", "", block)) for kind, block in FENCE.findall(read(page))])
        rows = [line for line in prose(page).splitlines() if line.startswith("|")]
        tables.append([len(re.findall(r"(?<!\\)\|", row)) for row in rows])
    assert blocks[0] == blocks[1]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("page", READMES)
def test_the_demo_has_the_stages_that_are_named(page):
    recipe = read_recipe(ROOT / "configs" / "demo.yaml")
    named = set(re.findall(rf"{re.escape(recipe.output_dir)}/\d+_\w+", read(page)))
    assert named and named <= {Path(stage.folder).as_posix() for stage in recipe.stages}
    assert read(page).count("<!-- demo results -->") == read(page).count("<!-- /demo results -->") == 1


@pytest.mark.parametrize("page", READMES)
def test_the_memory_table_is_what_its_command_calculates(page):
    spec = importlib.util.spec_from_file_location("memory_table", ROOT / "evaluation" / "memory_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    models = [script.pretraining_model(preset) for preset in PRESETS if preset != "tiny"]
    models += [script.recogniser(stage, "large", 5000) for stage in script.STAGES]
    calculated = []
    for model in models:
        cells = script.row("", script.training_bytes(model), 1)[1:7]
        calculated.append([f"{cells[0]} M", f"{cells[1]} M", *cells[2:]])
    lines = [line.strip("| ").split(" | ") for line in prose(page).splitlines() if line.count(" M |") == 2]
    assert [line[1:] for line in lines] == calculated
