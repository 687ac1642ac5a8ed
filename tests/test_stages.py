"""Recipes: each stage trains what it names and nothing else, hands over what it made, and refuses anything else."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from spoken_tones import CHARACTERS, make_utterances, utterance
from tiny_asr import chatml_tokenizer, text_config, tiny_model, tiny_processor
from transformers import Qwen3ForCausalLM

from nest_hf import NestAsrForConditionalGeneration, NestAsrProcessor
from nest_hf.freezing import matches
from nest_hf.handover import follow_pointer, read_record
from nest_hf.parsing import read_yaml
from nest_hf.stage_plan import describe_stages
from nest_hf.stages import Target, read_recipe
from nest_hf.transcription import Transcriber

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "training" / "run_stages.py"
CONFIGS = ROOT / "configs" / "finetune"
KINDS = ("nest", "fun_asr_nano_encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings, a language model, and a recogniser of each kind of encoder."""
    folder = tmp_path_factory.mktemp("stages")
    make_utterances(folder / "train", 16, length=None, seed=0)
    make_utterances(folder / "dev", 4, length=None, seed=1)
    make_utterances(folder / "wide", 4, length=None, seed=2)
    (folder / "keywords.txt").write_text("天\n地\n一\n", encoding="utf-8")
    tokenizer = chatml_tokenizer([CHARACTERS])
    torch.manual_seed(0)
    Qwen3ForCausalLM(text_config(len(tokenizer), initializer_range=0.1)).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    for kind in KINDS:
        processor = tiny_processor(texts=(CHARACTERS,), kind=kind)
        # dropout in every part, so that a frozen part in train mode would show
        model = tiny_model(processor, kind, adaptor={"num_hidden_layers": 1}, text={"attention_dropout": 0.1})
        model.save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
    return folder


def options(folder, **more) -> dict:
    return {
        "train_data": [f"calls={folder}/train/manifest.jsonl"],
        "eval_data": {"calls": f"{folder}/dev/manifest.jsonl", "retention": f"{folder}/wide/manifest.jsonl"},
        "eval_keywords": f"{folder}/keywords.txt",
        **{"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "warmup_steps": 0},
        **{"num_threads": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "batch_budget": 800},
        **{"budget_unit": "frames_and_tokens", "keep_best": 2, "learning_rate": 1e-3},
        **more,
    }


def literal(folder, kind: str = "nest", **more) -> dict:
    """The recipe `literal` with the stages' own configurations."""
    stages = [("encoder", "stage1_encoder"), ("adaptor", "stage2_adaptor"), ("lora", "stage3_lora")]
    own = {"learning_rate": 1e-3}
    entries = [{"stage": name, "config": str(CONFIGS / f"{config}.yaml"), "options": own} for name, config in stages]
    for entry in entries:
        entry["options"] = {**own, **options(folder, **more)}
    entries[0]["options"]["model_name_or_path"] = f"{folder}/{kind}"
    entries[1]["targets"] = {"ctc_loss": "-40%", "cer": "< 0.10"}
    return {"stages": entries}


def from_nest(folder) -> dict:
    """The recipe `from_nest`."""
    names = ["ctc_warmup", "encoder_ctc", "adaptor_warmup", "encoder", "adaptor", "lora"]
    configs = ["ctc_warmup", "encoder_ctc", "adaptor_warmup", "stage1_encoder", "stage2_adaptor", "stage3_lora"]
    entries = [
        {"stage": name, "config": str(CONFIGS / f"{config}.yaml"), "options": options(folder, max_steps=2)}
        for name, config in zip(names, configs, strict=True)
    ]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": 16}
    entries[0]["options"] |= {"preset": "tiny", "config_overrides": sizes, "language_model": f"{folder}/lm"}
    entries[0]["options"] |= {"adaptor_config": {"kind": "mlp", "projector_hidden_size": 32}, "keep_best": 0}
    return {"stages": entries}


def write(path, recipe: dict, output_dir) -> Path:
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(output_dir)}, sort_keys=False), encoding="utf-8")
    return path


def run(recipe, *argv) -> None:
    """The script in this process."""
    before = sys.argv
    sys.argv = [str(SCRIPT), str(recipe), "--estimate", "false", "--use_cpu", "true", *map(str, argv)]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = before


def error_of(recipe, *argv) -> str:
    with pytest.raises(SystemExit) as exit_:
        run(recipe, *argv)
    message = str(exit_.value.code).lstrip()
    assert message.startswith("error: ") and "\n" not in message
    return message.removeprefix("error: ")


@pytest.fixture(scope="module", params=KINDS)
def done(request, folder, tmp_path_factory):
    """A finished run of `literal`."""
    out = tmp_path_factory.mktemp(request.param)
    recipe = write(out / "recipe.yaml", literal(folder, request.param), out / "run")
    run(recipe)
    return request.param, folder, out / "run"


def tensors(path) -> dict:
    return load_file(Path(path) / "model.safetensors")


# ---- what a stage leaves


def test_a_stage_changes_all_that_it_names_and_nothing_else(done):
    kind, folder, out = done
    trained = {"0_encoder": ["audio_tower"], "1_adaptor": ["multi_modal_projector", "ctc_head"]}
    before = tensors(folder / kind)
    for stage, patterns in trained.items():
        after = tensors(out / stage)
        assert before.keys() == after.keys()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name for name in before if matches(name, patterns)}
        before = after
    after = tensors(out / "2_lora")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    projections = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
    assert moved == {
        name for name in before if name.startswith("model.language_model.") and name.endswith(projections)
    }


def test_the_adapter_is_the_language_models_and_loads_by_pefts_own_means(done):
    from peft import PeftModel

    _, _, out = done
    adapter = load_file(out / "2_lora" / "adapter" / "adapter_model.safetensors")
    assert adapter and all(".language_model." in name for name in adapter)
    base = NestAsrForConditionalGeneration.from_pretrained(out / "1_adaptor")
    adapted = PeftModel.from_pretrained(base, str(out / "2_lora" / "adapter")).eval()
    merged = NestAsrForConditionalGeneration.from_pretrained(out / "2_lora").eval()
    processor = NestAsrProcessor.from_pretrained(out / "2_lora")
    inputs = processor([utterance("天地人", np.random.default_rng(0))], transcripts=["天地人"])
    inputs = {key: value for key, value in inputs.items() if key not in ("labels", "ctc_labels")}
    with torch.no_grad():
        difference = (adapted(**inputs).logits - merged(**inputs).logits).abs().max()
    assert difference <= 1e-4
    with torch.no_grad(), adapted.disable_adapter():
        assert (adapted(**inputs).logits - merged(**inputs).logits).abs().max() > 1e-3  # the adapter does something


def test_records_pointers_and_metrics_tell_the_whole_way(done):
    kind, folder, out = done
    names = {1: "0_encoder", 2: "1_adaptor", 3: "2_lora"}
    records = [read_record(out / name) for name in names.values()]
    assert [record["stage"] for record in records] == ["encoder", "adaptor", "lora"]
    for parent, child in zip(records, records[1:], strict=False):
        assert child["parent"]["sha256"] == parent["sha256"] and child["parent"]["stage"] == parent["stage"]
    assert follow_pointer(out / "stage0_checkpoint.txt").endswith("0_encoder")
    assert follow_pointer(out / "stage1_checkpoint.txt").endswith("1_adaptor")
    assert follow_pointer(out / "final_checkpoint.txt").endswith("2_lora")
    for record in records:
        assert {"eval_calls_cer", "eval_retention_kwer", "eval_retention_cer"} <= record["metrics"].keys()
        assert record["metrics_before"].keys() >= {"eval_calls_cer", "eval_retention_cer"}
        assert record["data"]["train"]["recordings"] == 16
    assert not list(out.rglob("best")) and not list(out.rglob("*.incomplete"))
    (result,) = Transcriber.from_pretrained(follow_pointer(out / "final_checkpoint.txt"))(
        str(folder / "dev" / "000.wav")
    )
    assert isinstance(result.text, str)


def test_the_result_is_the_best_that_was_decoded(done):
    _, _, out = done
    for stage in ("0_encoder", "1_adaptor", "2_lora"):
        history = json.loads((out / stage / "trainer_state.json").read_text())["log_history"]
        kept = [line["eval_calls_cer"] for line in history if "eval_calls_cer" in line and line["step"] > 0]
        assert read_record(out / stage)["metrics"]["eval_calls_cer"] <= min(kept)


def test_the_same_command_again_does_nothing(done, tmp_path, caplog):
    _, _, out = done
    again = shutil.copytree(out.parent, tmp_path / "again")
    recipe = again / "recipe.yaml"
    before = {path: path.stat().st_mtime_ns for path in (again / "run").rglob("*.safetensors")}
    recipe.write_text(recipe.read_text().replace(str(out), str(again / "run")))
    for record in (again / "run").glob("*/stage.json"):
        record.write_text(record.read_text().replace(str(out), str(again / "run")))
    with caplog.at_level("INFO"):
        run(recipe)
    assert caplog.text.count("nothing to do") == 3
    assert before == {path: path.stat().st_mtime_ns for path in (again / "run").rglob("*.safetensors")}


@pytest.mark.slow
def test_from_nest_goes_through_from_parts(folder, tmp_path):
    run(write(tmp_path / "recipe.yaml", from_nest(folder), tmp_path / "run"))
    record = read_record(follow_pointer(tmp_path / "run" / "final_checkpoint.txt"))
    assert record["stage"] == "lora" and record["parent"]["stage"] == "adaptor"
    first, second = tensors(tmp_path / "run" / "0_ctc_warmup"), tensors(tmp_path / "run" / "1_encoder_ctc")
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved == {name for name in first if matches(name, ["audio_tower", "ctc_head"])}


# ---- refusals


@pytest.fixture
def recipe(folder, tmp_path):
    """The first stage only, of one step."""
    short = literal(folder, max_steps=1, eval_steps=1, save_steps=1)
    return short, lambda: write(tmp_path / "recipe.yaml", short, tmp_path / "run")


def test_a_parent_that_was_changed_is_refused(recipe, tmp_path):
    _, write_it = recipe
    run(write_it(), "--last", 0)
    path = tmp_path / "run" / "0_encoder" / "config.json"
    path.write_text(path.read_text().replace('"ctc_weight": 0.3', '"ctc_wieght": 0.3'))
    assert "config.json changed" in error_of(write_it(), "--first", 1, "--last", 1)
    assert not (tmp_path / "run" / "1_adaptor" / "stage.json").exists()


def test_a_misspelt_key_of_a_models_configuration_is_refused(folder, recipe, tmp_path):
    short, write_it = recipe
    copy = shutil.copytree(folder / "nest", tmp_path / "model")
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"ctc_weight": 0.3', '"ctc_wieght": 0.3'))
    short["stages"][0]["options"]["model_name_or_path"] = str(copy)
    assert "unknown key `ctc_wieght`; did you mean `ctc_weight`" in error_of(write_it(), "--last", 0)


def test_the_wrong_parent_is_refused(recipe, folder, tmp_path):
    short, write_it = recipe
    assert "needs `encoder`, which is not complete; begin there" in error_of(write_it(), "--first", 1)
    run(write_it(), "--last", 0)
    short["stages"][1]["options"] |= {"model_name_or_path": str(tmp_path / "run" / "0_encoder")}
    short["stages"][1]["options"] |= {"parent_stage": "adaptor"}
    assert "made by stage `encoder`, but `parent_stage` is adaptor" in error_of(write_it(), "--first", 1, "--last", 1)
    short["stages"][1]["options"]["model_name_or_path"] = str(folder / "nest")
    assert "by no stage that is complete" in error_of(write_it(), "--first", 1, "--last", 1)


def test_another_parent_than_a_stage_was_begun_from_is_refused(recipe, folder, tmp_path):
    short, write_it = recipe
    run(write_it(), "--last", 0)
    (tmp_path / "run" / "0_encoder" / "stage.json").unlink()
    other = tiny_model(tiny_processor(texts=(CHARACTERS,)), adaptor={"num_hidden_layers": 1}, seed=1)
    other.save_pretrained(tmp_path / "other")
    NestAsrProcessor.from_pretrained(folder / "nest").save_pretrained(tmp_path / "other")
    short["stages"][0]["options"]["model_name_or_path"] = str(tmp_path / "other")
    assert "was begun from another model" in error_of(write_it(), "--last", 0)


def test_other_options_than_a_complete_stages_are_refused(recipe):
    short, write_it = recipe
    run(write_it(), "--last", 0)
    short["stages"][0]["options"]["learning_rate"] = 5e-4
    message = error_of(write_it(), "--last", 0)
    assert "complete" in message and "learning_rate 0.001 -> 0.0005" in message
    short["stages"][0]["options"] |= {"learning_rate": 1e-3, "logging_steps": 7}
    run(write_it(), "--last", 0)  # what does not change the result may change


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        (0, {"trainable": ["audio_towr"]}, "`audio_towr`, which matches nothing"),
        (0, {"trainable": ["ctc_head"], "ctc_weight": 0.0}, "no loss reaches with `ctc_weight` 0"),
        (0, {"trainable": ["multi_modal_projector"], "lm_weight": 0.0}, "no loss reaches with `lm_weight` 0"),
        (0, {"learning_rat": 1.0}, "stage `encoder`: unknown key `learning_rat`; did you mean `learning_rate`"),
        (0, {"lora": {"rank": 4}, "trainable": None}, "unknown key `rank`"),
        (0, {"lora": {"modules": ["query"]}, "trainable": None}, "`query`, which the language model does not have"),
        (0, {"lora": {}}, "`trainable` has no effect with `lora`"),
        (0, {"task": "ctc", "lora": {}, "trainable": None}, "`lora` has no effect with `task` ctc"),
        (0, {"adaptor_config": {"kind": "mlp"}}, "`adaptor_config` has no effect with `model_name_or_path`"),
        (0, {"merge": False}, "`merge` has no effect without `lora`"),
        (0, {"early_stopping_patience": 0}, "1 or more"),
        (0, {"keep_best": 1, "eval_data": None}, "`keep_best` has no effect without `eval_data`"),
        (2, {"use_muon": True}, "stage `lora`: `use_muon` has no effect with `lora`, whose matrices are no layer's"),
        (0, {"mix": "random"}, "needs `mix_weights`"),
        (0, {"mix": "random", "mix_weights": {"cals": 1.0}}, "names 'cals', which is no domain"),
        (0, {"channel": "clean_8k", "channel_domains": ["wide"]}, "names 'wide', which is no domain"),
        (0, {"channel_domains": ["calls"]}, "no effect without `channel`"),
        (0, {"max_loss_ratio": 0.5}, "must be above 1"),
        (0, {"metric_for_best_model": "cre"}, "eval_calls_cre is not among the metrics: eval_calls_cer"),
        (0, {"metric_for_best_model": "retention_cre"}, "eval_retention_cre is not among the metrics"),
        (0, {"metric_for_best_model": "keyword_accuracy"}, "lower must be better"),
        (0, {"eval_keywords": "nowhere.txt"}, "nowhere.txt"),
        (0, {"model_name_or_path": "$nowhere/model"}, "names no stage before it"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_refused(recipe, stage, given, message):
    short, write_it = recipe
    short["stages"][stage]["options"] |= given
    short["stages"][stage].pop("config") if given.get("trainable", 1) is None else None
    if given.get("trainable", 1) is None:
        del short["stages"][stage]["options"]["trainable"]
    assert message in error_of(write_it(), "--last", stage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(stagse=[]), "unknown key `stagse`; did you mean `stages`"),
        (lambda r: r["stages"][0].update(optoins={}), "unknown key `optoins`; did you mean `options`"),
        (lambda r: r["stages"][0].pop("stage"), "has no `stage`"),
        (lambda r: r["stages"][1].update(stage="encoder"), "two stages `encoder`"),
        (lambda r: r["stages"][1].update({"from": "lora"}), "`from` names 'lora', which is no training stage before"),
        (lambda r: r["stages"][1].update(targets={"cer": "0.1"}), "'0.1'; write '< 0.08'"),
        (lambda r: r["stages"][1].update(config="nowhere.yaml"), "nowhere.yaml does not exist"),
        (lambda r: r.update(stages=[]), "`stages` is missing"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe, change, message):
    short, write_it = recipe
    change(short)
    assert message in error_of(write_it())


def test_a_missed_target_stops_the_recipe_where_it_is_required(recipe, tmp_path):
    short, write_it = recipe
    short["stages"][0]["targets"] = {"cer": "< 0.000001"}
    assert "stage `encoder` missed cer < 0.000001" in error_of(write_it(), "--require_targets", "true")
    assert (tmp_path / "run" / "0_encoder" / "stage.json").is_file()
    assert not (tmp_path / "run" / "1_adaptor").exists()


def test_the_plan_says_what_is_missing_before_anything_trains(recipe, tmp_path):
    short, write_it = recipe
    short["stages"][2]["options"]["train_data"] = ["calls=nowhere/manifest.jsonl"]
    assert "nowhere/manifest.jsonl" in error_of(write_it())
    assert not (tmp_path / "run" / "0_encoder").exists()


@pytest.mark.parametrize(
    ("goal", "value", "before", "expected"),
    [
        ("< 0.08", 0.079, None, True),
        ("< 0.08", 0.08, None, False),
        ("> 0.95", 0.96, None, True),
        ("-30%", 0.7, 1.0, True),
        ("-30%", 0.71, 1.0, False),
        ("-30%", 0.7, None, None),
        ("< 5", None, None, None),
    ],
)
def test_targets(goal, value, before, expected):
    assert Target("cer", goal).is_reached(value, before) is expected


def test_every_recipe_and_stage_of_the_repository_can_be_read():
    paths = [ROOT / "configs" / "demo.yaml", *(ROOT / "configs" / "recipes").glob("*.yaml")]
    recipes = [path for path in paths if "stages" in read_yaml(path)]  # the others are of training/run_grid.py
    assert len(recipes) >= 4
    for path in recipes:
        recipe = read_recipe(path, options={"bf16": False, "use_cpu": True})
        for stage in recipe.stages:
            stage.arguments()


# ---- further kinds, and what watches over a stage


@pytest.mark.slow
def test_from_preparation_to_evaluation_in_one_command(folder, tmp_path, capsys):
    recipe = literal(folder, max_steps=2, mix="random", mix_weights={"calls": 0.5, "simulated": 0.5})
    first = recipe["stages"][0]["options"]
    first["train_data"] = [f"calls={folder}/train/manifest.jsonl", "simulated=$prepare/train.jsonl"]
    for entry in recipe["stages"][1:]:
        entry["options"] |= {"mix": "all", "mix_weights": None}
    prepare = {"preset": "clean_8k", "data": [f"{folder}/wide/manifest.jsonl"], "num_proc": 1}
    evaluation = {
        "systems": {"baseline": f"{folder}/nest", "lora": "$lora", "joint": "$joint"},
        "data": {"calls": f"{folder}/dev/manifest.jsonl", "retention": f"{folder}/wide/manifest.jsonl"},
        "keywords": f"{folder}/keywords.txt",
        "use_cpu": True,
    }
    branch = {"stage": "joint", "from": "adaptor", "config": str(CONFIGS / "joint.yaml"), "options": options(folder)}
    recipe["stages"] = [
        {"stage": "prepare", "options": prepare},
        *recipe["stages"],
        branch,
        {"stage": "evaluate", "options": evaluation},
    ]
    path = write(tmp_path / "recipe.yaml", recipe, tmp_path / "run")
    run(path)
    assert read_record(tmp_path / "run" / "1_encoder")["data"]["train"]["recordings"] == 16 + 4
    assert read_record(tmp_path / "run" / "4_joint")["parent"]["stage"] == "adaptor"
    assert follow_pointer(tmp_path / "run" / "final_checkpoint.txt").endswith("3_lora")
    summary = json.loads((tmp_path / "run" / "5_evaluate" / "summary.json").read_text())
    assert list(summary) == ["baseline", "lora", "joint"]
    assert all(rates["retention_cer"] and rates["ctc_cer"] and rates["cer"]["interval"] for rates in summary.values())
    assert "CER (CTC)" in capsys.readouterr().out


def test_the_plan_says_which_options_of_the_recipe_a_stage_does_not_follow(folder, tmp_path):
    recipe = literal(folder)
    recipe["options"] = {"batch_budget": 700, "keep_best": 3, "ctc_weight": 0.3}  # the first config has the last, too
    for name in ("batch_budget", "keep_best"):
        del recipe["stages"][0]["options"][name]
    recipe = read_recipe(write(tmp_path / "recipe.yaml", recipe, tmp_path / "run"))
    lines = describe_stages(recipe, recipe.stages, estimate=False)
    assert [line for line in lines if "has its own" in line] == [
        "stage 0 encoder: its config has its own batch_budget, keep_best",
        "stage 2 lora: its config has its own ctc_weight",
    ]


def test_an_adapter_alone_is_the_stages_folder_where_nothing_is_merged(folder, tmp_path):
    from peft import PeftModel

    recipe = literal(folder, max_steps=1, eval_steps=1, save_steps=1, merge=False)
    entry = recipe["stages"][2]
    entry["options"]["model_name_or_path"] = f"{folder}/nest"
    run(write(tmp_path / "recipe.yaml", {"stages": [entry]}, tmp_path / "run"))
    assert not (tmp_path / "run" / "0_lora" / "model.safetensors").exists()
    base = NestAsrForConditionalGeneration.from_pretrained(folder / "nest")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "0_lora"))
    assert sum("lora_" in name for name, _ in adapted.named_parameters()) == 2 * 4 * 2
    assert all("lora_" in name for name in read_record(tmp_path / "run" / "0_lora")["tensors"])


def test_a_leap_of_the_loss_names_its_recordings(recipe):
    short, write_it = recipe
    short["stages"][0]["options"] |= {"max_steps": 40, "max_loss_ratio": 1.0001, "eval_steps": 40, "save_steps": 40}
    message = error_of(write_it(), "--last", 0)
    assert "the loss of a batch just before step" in message and "train-0" in message


def test_the_channel_is_for_the_domains_that_are_named(folder):
    from nest_hf.data.batching import ExampleKey
    from nest_hf.data.labelled import LabelledDataset, load_labelled
    from nest_hf.data.telephone import TelephoneChannel

    sources = [f"calls={folder}/dev/manifest.jsonl", f"wide={folder}/wide/manifest.jsonl"]
    labelled = load_labelled(sources, name="train")
    channel = TelephoneChannel.from_preset("clean_8k")
    plain = LabelledDataset(labelled)
    phoned = LabelledDataset(labelled, channel=channel, channel_domains=["wide"])
    for row, domain in enumerate(labelled.rows["domain"][:]):
        key = ExampleKey(0, (row,))
        same = np.array_equal(plain[key].audio.wave, phoned[key].audio.wave)
        assert same == (domain == "calls")


# ---- killed at any moment


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(folder, tmp_path):
    """SIGKILL to the process group, also while it saves and between save and hand-over."""
    slow = {"max_steps": 6, "save_steps": 1, "eval_steps": 2}
    whole = write(tmp_path / "whole.yaml", literal(folder, **slow), tmp_path / "whole")
    killed = write(tmp_path / "killed.yaml", literal(folder, **slow), tmp_path / "killed")
    run(whole)
    command = [sys.executable, str(SCRIPT), str(killed), "--estimate", "false", "--use_cpu", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rng, kills = random.Random(0), 0
    for attempt in range(40):
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        moment = time.monotonic() + 300 if attempt >= 8 else _moment(tmp_path / "killed", rng, attempt)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            for record in (tmp_path / "killed").glob("*/stage.json"):
                assert read_record(record.parent)["stage"]  # never half-written
            continue
        assert process.returncode == 0, process.stderr.read().decode()[-2000:]
        break
    assert kills >= 3
    for stage in ("0_encoder", "1_adaptor", "2_lora"):
        first, second = tensors(tmp_path / "whole" / stage), tensors(tmp_path / "killed" / stage)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert follow_pointer(tmp_path / "killed" / "final_checkpoint.txt").endswith("2_lora")


def _moment(out: Path, rng: random.Random, attempt: int) -> float:
    """When to kill: a while after something new appears in the folder, so that kills spread over the whole run."""
    before = _names(out)
    deadline = time.monotonic() + 120
    wanted = ("checkpoint-", "model.safetensors", "stage.json", ".incomplete", "best", "adapter")[attempt % 6]
    while time.monotonic() < deadline:
        if any(wanted in Path(name).name for name in _names(out) - before):
            break
        time.sleep(0.002)
    return time.monotonic() + rng.choice([0.0, 0.01, 0.05, 0.3])


def _names(out: Path) -> set[str]:
    """All that is in a folder, which changes meanwhile."""
    return {os.path.join(where, name) for where, *kinds in os.walk(out) for names in kinds for name in names}
