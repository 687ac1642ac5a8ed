"""Makes a metric a folder that needs no nest_hf, and pushes it to the Hub as a module of the `evaluate` library.

python evaluation/metrics/push.py kwer --output_dir kwer                      # evaluate.load("kwer", keywords=[...])
python evaluation/metrics/push.py kwer --output_dir kwer --repo_id user/kwer  # evaluate.load("user/kwer", ...)
"""

import argparse
import inspect
import re
import sys
from pathlib import Path

import huggingface_hub

from nest_hf import metrics
from nest_hf.parsing import error_line

NAMES = {
    "cer": metrics.CharacterErrorRate,
    "mer": metrics.MixedErrorRate,
    "wer": metrics.WordErrorRate,
    "kwer": metrics.KeywordErrorRate,
}
PACKAGES = ["evaluate", "numpy", "opencc", "rapidfuzz", "regex"]
CARD = """---
title: {title}
sdk: static
tags:
- evaluate
- metric
---
# {title}

```python
import evaluate
metric = evaluate.load("{repo}"{options})
metric.compute(predictions=["..."], references=["..."])
```

{description}
"""
OPTIONS = {"wer": ', segmenter="jieba"', "kwer": ", keywords=[...]"}


def modules_of(name: str) -> dict[str, str]:
    """The source files that a module of the package needs, by name, each after those that it imports."""
    found: dict[str, str] = {}
    source = (Path(metrics.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    for other in re.findall(r"^from \.(\w+) import", source, flags=re.MULTILINE):
        found.update(modules_of(other))
    return {**found, name: source}


def write_folder(name: str, folder: Path, repo: str) -> None:
    """Writes the script, the modules beside it, the card and the requirements."""
    if folder.exists():
        raise ValueError(f"`output_dir` is {folder}, which exists; name a new folder.")
    if folder.name != name:
        raise ValueError(f"`output_dir` ends in {folder.name!r}, but the library looks for {name!r}; end it so.")
    folder.mkdir(parents=True)
    modules = modules_of("metrics")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
    # The library fetches the modules that the script itself imports, and takes the script's first metric
    kind = NAMES[name].__name__
    packages = [f"import {package}" for package in PACKAGES if package != "evaluate"]
    local = [f"from .{module} import __name__ as _{module}" for module in modules if module != "metrics"]
    local.append(f"from .metrics import {kind}")
    script = [f'"""{kind}, a metric of the `evaluate` library."""', "", *packages, "", *local, ""]
    (folder / f"{name}.py").write_text("\n".join(script), encoding="utf-8")
    card = CARD.format(
        title=name.upper(), repo=repo, options=OPTIONS.get(name, ""), description=inspect.getdoc(NAMES[name])
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    extras = ["jieba"] if name == "wer" else []
    (folder / "requirements.txt").write_text("\n".join([*PACKAGES, *extras, ""]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", choices=NAMES)
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder of the metric's name")
    parser.add_argument("--repo_id", help="the repository (a Space) to push to")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    args = parser.parse_args()
    write_folder(args.metric, args.output_dir, args.repo_id or str(args.output_dir))
    if args.repo_id:
        api = huggingface_hub.HfApi()
        api.create_repo(args.repo_id, repo_type="space", space_sdk="static", private=args.private, exist_ok=True)
        api.upload_folder(folder_path=args.output_dir, repo_id=args.repo_id, repo_type="space")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
