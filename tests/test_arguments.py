"""Arguments: a YAML of differences, overrides, and one clear message for whatever is wrong in them."""

import dataclasses
import json

import pytest
import torch
import yaml

from nest_hf.arguments import (
    NestModelArguments,
    NestTrainingArguments,
    PretrainingDataArguments,
    model_config,
    noise_augmentation,
)
from nest_hf.data import MultiSpeakerNoise, SpeakerNoise
from nest_hf.parsing import parse_arguments, save_resolved

TYPES = (NestModelArguments, PretrainingDataArguments, NestTrainingArguments)


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def parse(*argv: str) -> dict:
    """All arguments, by name."""
    parsed = parse_arguments(*TYPES, argv=[*argv, "--use_cpu", "true"])
    return {
        field.name: getattr(part, field.name) for part in parsed for field in dataclasses.fields(part) if field.init
    }


def test_the_defaults_are_nemos_recipe():
    values = parse()
    recipe = {
        "schedule": "noam",
        "learning_rate": 5.0,
        "min_lr": 1e-6,
        "warmup_steps": 25000,
        "weight_decay": 1e-3,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-8,
        "max_steps": 500_000,
        "max_grad_norm": 0.0,
        "eval_steps": 2500,
        "gradient_accumulation_steps": 1,
        "bf16": False,
        "fp16": False,
        "per_device_train_batch_size": 8,
        "sync_batchnorm": True,
        "noise_augmentation": "multi_speaker",
        "max_duration_s": 60.0,
        "sampling_rate": 16000,
    }
    assert {key: values[key] for key in recipe} == recipe
    assert values["report_to"] == ["tensorboard"] and not values["logging_nan_inf_filter"]
    config = model_config(NestModelArguments())
    assert (config.hidden_size, config.num_hidden_layers, config.codebook_size) == (512, 17, 8192)
    assert (config.mask_prob, config.mask_block_size, config.mask_allow_overlap) == (0.01, 40, True)
    assert noise_augmentation("multi_speaker", None) == MultiSpeakerNoise(prob=0.5, noise_ratio=0.5)
    assert noise_augmentation("single_speaker", {"prob": 1}) == SpeakerNoise(prob=1)
    assert noise_augmentation("none", None) is None


def test_later_yamls_and_the_command_line_win(write):
    first = write("preset: small\nmax_steps: 10\nlearning_rate: 1e-4\nbatch_duration_s: 50\n", "a.yaml")
    second = write("max_steps: 20\nlearning_rate: 2.0e-3\n", "b.yaml")
    values = parse(first, second, "--learning-rate", "1e-5", "--batch_duration_s=80")
    assert (values["preset"], values["max_steps"]) == ("small", 20)
    assert (values["learning_rate"], values["batch_duration_s"]) == (1e-5, 80.0)
    assert parse(first)["learning_rate"] == 1e-4  # PyYAML reads it as a string
    mapping = write("lr_scheduler_kwargs: {num_cycles: 1}\nconfig_overrides: {hidden_size: 64}\n")
    values = parse(
        mapping, "--lr_scheduler_kwargs", '{"num_cycles": 2}', "--config-overrides", '{"codebook_size": 32}'
    )
    assert values["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert values["config_overrides"] == {"hidden_size": 64, "codebook_size": 32}  # added to, not replaced
    assert parse(mapping)["lr_scheduler_kwargs"] == {"num_cycles": 1}


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_one(write):
    path = write("learning_rat: 1.0\n")
    with pytest.raises(ValueError, match=f"^{path}: unknown key `learning_rat`; did you mean `learning_rate`"):
        parse(path)
    with pytest.raises(ValueError, match="unknown key `_n_gpu`"):  # a field, but no option
        parse(write("_n_gpu: 2\n"))
    with pytest.raises(
        ValueError, match="command line: unknown key `batch_duration`; did you mean `batch_duration_s`"
    ):
        parse("--batch-duration", "100")
    with pytest.raises(ValueError, match="config_overrides: unknown key `codebok_size`; did you mean `codebook_size`"):
        model_config(NestModelArguments(config_overrides={"codebok_size": 3}))
    with pytest.raises(ValueError, match="noise: unknown key `min_r_nois`; did you mean `min_r_noise`"):
        noise_augmentation("multi_speaker", {"min_r_nois": 0})
    with pytest.raises(ValueError, match="noise: unknown key `max_num_speakers`"):  # not of the single speaker's
        noise_augmentation("single_speaker", {"max_num_speakers": 2})
    with pytest.raises(ValueError, match="`noise_augmentation` is 'multi'; choose one of multi_speaker"):
        noise_augmentation("multi", None)
    with pytest.raises(ValueError, match="`preset` is 'huge'; choose one of tiny, small"):
        model_config(NestModelArguments(preset="huge"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_steps: 3.5", "`max_steps` is 3.5 where int"),
        ("max_steps: many", "`max_steps` is 'many', not a number"),
        ("learning_rate: fast", "`learning_rate` is 'fast', not a number"),
        ("learning_rate: true", "`learning_rate` is True where float"),
        ("bf16: 1", "`bf16` is 1 where bool is due"),
        ("resample: null", "`resample` is None where bool is due"),
        ("preset: [tiny]", r"`preset` is \['tiny'\] where str"),
        ("config_overrides: tiny", "`config_overrides` is 'tiny' where dict"),
        ("train_data: {a: b}", "`train_data` is {'a': 'b'} where list"),
        ("mix_weights: [1, much]", "`mix_weights` is 'much', not a number"),
        ("- preset", "must hold `key: value` lines"),
        ("preset: [", "is not valid YAML"),
        ("schedule: noham", "`schedule` is 'noham'; choose `noam` or `trainer`"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(write, line, message):
    with pytest.raises(ValueError, match=message):
        parse(write(line + "\n"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--output_dir"], "expected one argument"),
        (["--max_steps", "5", "stray"], "cannot make sense of 'stray'"),
        (["missing.yaml"], "missing.yaml does not exist; the first argument is a YAML"),
        (["--noise", "prob=1"], "--noise takes a JSON mapping, not 'prob=1'"),
        (["--noise", "{prob: 1}"], "--noise is not valid JSON"),
        (["--noise"], "--noise lacks its value"),
        (["--eval_data", "a/x.json", "b/x.json"], "two sources of eval_data have one name; write name=source"),
    ],
)
def test_a_wrong_command_line_is_explained(argv, message):
    with pytest.raises(ValueError, match=message):
        parse(*argv)


def test_wrong_values_inside_mappings_are_named():
    with pytest.raises(ValueError, match="(?s)config_overrides: .*'hidden_size' expected int, got str"):
        model_config(NestModelArguments(config_overrides={"hidden_size": "wide"}))
    with pytest.raises(ValueError, match="noise: `prob` is 'often', not a number"):
        noise_augmentation("multi_speaker", {"prob": "often"})
    assert noise_augmentation("multi_speaker", {"prob": "1e-1"}).prob == 0.1  # as PyYAML reads it
    with pytest.raises(ValueError, match="`prob` is 2"):
        noise_augmentation("multi_speaker", {"prob": 2})


def test_what_yaml_means_by_no_and_by_one_value(write):
    values = parse(write("eval_strategy: no\neval_conditions: clean\nmix_weights: 1\nrun_name: 7\nmax_steps: 1e3\n"))
    assert values["eval_strategy"].value == "no"
    assert (values["eval_conditions"], values["mix_weights"]) == (["clean"], [1])
    assert (values["run_name"], values["max_steps"]) == ("7", 1000)


def test_train_data_is_one_source_or_several(write):
    assert parse("--train_data", "a.json,b.json")["train_data"] == ["a.json,b.json"]  # split where it is read
    assert parse("--train_data", "a.json", "b.json")["train_data"] == ["a.json", "b.json"]
    assert parse(write("train_data: a.json,b.json\n"))["train_data"] == ["a.json,b.json"]
    assert parse(write("train_data: [a.json, b.json]\n"))["train_data"] == ["a.json", "b.json"]


def test_validation_sets_have_names(write):
    pairs = {"calls": "a.json", "read": "b.json"}
    for argv in (
        ["--eval_data", "calls=a.json", "read=b.json"],
        ["--eval_data", json.dumps(pairs)],
        ["--eval-data=" + json.dumps(pairs)],
        [write("eval_data: {calls: a.json, read: b.json}\n", "1.yaml")],
        [write("eval_data: [calls=a.json, read=b.json]\n", "2.yaml")],
        [write("eval_data: other.json\n", "3.yaml"), "--eval_data", "calls=a.json", "read=b.json"],
    ):
        assert parse(*argv)["eval_data"] == pairs
    assert parse("--eval_data", "a.json")["eval_data"] == {"validation": "a.json"}
    assert parse(write("eval_data: a.json,b.json\n"))["eval_data"] == {"validation": "a.json,b.json"}
    assert parse("--eval_data", "a.json", "dir/b.json")["eval_data"] == {"a": "a.json", "b": "dir/b.json"}
    # a key of the same words elsewhere is no validation set
    with pytest.raises(ValueError, match="`noise` is 'a' where dict"):
        parse(write("noise: a\n", "eval_data.yaml"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_asking_for_gpus_without_cuda_says_what_to_do(write):
    for argv in (["--gpu_ids", "0,1"], ["--gpu-ids=0"], [write("gpu_ids: 0\n")]):
        with pytest.raises(ValueError, match="`gpu_ids` is 0.*finds no CUDA device; install a CUDA build .* or leave"):
            parse(*argv)


def test_the_resolved_config_has_no_token_and_can_be_given_again(write, tmp_path):
    config = write(
        "config_overrides: {hidden_size: 64}\neval_data: {a: x.json}\nnoise: {prob: 0.3}\nmix_weights: [1]\n"
    )
    argv = [
        config,
        "--learning_rate",
        "1",
        "--output_dir",
        str(tmp_path / "运行"),
        "--use_cpu",
        "true",
        "--hub_token",
        "hf_secret",
    ]
    argv += [
        "--lr_scheduler_kwargs",
        '{"a": 1}',
        "--warmup_steps",
        "0.1",
        "--train_data",
        "a",
        "b",
        "--report_to",
        "none",
    ]
    first = parse_arguments(*TYPES, argv=argv)
    save_resolved(str(tmp_path / "运行"), *first)
    path = tmp_path / "运行" / "config_resolved.yaml"
    assert "hf_secret" not in path.read_text(encoding="utf-8")
    known = {field.name for kind in TYPES for field in dataclasses.fields(kind)}
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known - {"hub_token"}
    second = parse_arguments(*TYPES, argv=[str(path), "--hub_token", "hf_secret"])
    for one, other in zip(first, second, strict=True):
        for field in dataclasses.fields(one):
            if field.init:
                assert getattr(one, field.name) == getattr(other, field.name), field.name


def test_what_this_machine_lacks_is_said(tmp_path):
    base = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    with pytest.raises(ValueError, match="`report_to` names no_such_tracker, which is not installed"):
        parse_arguments(NestTrainingArguments, argv=[*base, "--report_to", "no_such_tracker"])
    with pytest.raises(ValueError, match="`fp16` has no effect on CPU"):
        parse_arguments(NestTrainingArguments, argv=[*base, "--fp16", "true"])
