"""Pushing runs to the Hub: real `huggingface_hub` against a local server, a network that breaks, tokens, cards."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from recordings import make_recordings
from safetensors.torch import save_file
from spoken_tones import CHARACTERS, make_utterances
from test_finetune_script import asr, data
from tiny_asr import chatml_tokenizer, text_config
from transformers import Qwen3ForCausalLM

from nest_hf import hub as hub_module
from nest_hf.arguments import NestTrainingArguments
from nest_hf.handover import write_record
from nest_hf.hub import files_to_push, push_run
from nest_hf.model_cards import figures, is_hub_id, model_card
from nest_hf.parsing import parse_arguments

ROOT = Path(__file__).parents[1]
TOKEN = "hf_a1B2c3D4e5F6g7H8"
RUN = "--use_cpu true --report_to none --disable_tqdm true --max_steps 2 --learning_rate 1e-3".split()
PRETRAIN = ["training/pretrain.py", "--preset", "tiny", "--schedule", "trainer", *RUN, "--batch_duration_s", "8"]


@pytest.fixture
def hub():
    with HubServer({TOKEN}) as server:
        yield server
        assert server.unknown == [] and server.faults == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    make_recordings(folder / "speech", number=6, seed=0, min_s=1.2, max_s=2.5)
    make_utterances(folder / "train", 6, length=None, seed=0)
    make_utterances(folder / "dev", 3, length=None, seed=1)
    tokenizer = chatml_tokenizer([CHARACTERS])
    torch.manual_seed(0)
    Qwen3ForCausalLM(text_config(len(tokenizer), initializer_range=0.1)).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    return folder


@pytest.fixture
def python(hub, tmp_path):
    """Runs python in a process of its own, whose Hub is the server."""

    def python(*argv, token: str | None = TOKEN) -> subprocess.CompletedProcess:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token}
        own |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        env = clean | {key: value for key, value in own.items() if value is not None}
        command = [sys.executable, *map(str, argv)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)

    return python


def pretrain(folder, out) -> list:
    manifest = folder / "speech" / "manifest.jsonl"
    noise = ["--noise_augmentation", "none", "--eval_noise_augmentation", "none"]
    push = ["--push_to_hub", "true", "--hub_model_id", "lab/nest", "--hub_license", "apache-2.0"]
    return [*PRETRAIN, "--train_data", manifest, "--eval_data", f"dev={manifest}", *noise, *push, "--output_dir", out]


def local(out, paths) -> dict[str, bytes]:
    return {path: (Path(out) / path).read_bytes() for path in paths}


# ---- end to end


LOAD_PRETRAINED = """
import sys
from huggingface_hub import HfApi, snapshot_download
from nest_hf import NestFeatureExtractor, NestForPreTraining, NestModel
from nest_hf.handover import verify
assert {file.path for file in HfApi().list_repo_tree("lab/nest", recursive=True)} >= {"config.json", "README.md"}
NestForPreTraining.from_pretrained("lab/nest"), NestFeatureExtractor.from_pretrained("lab/nest")
NestModel.from_pretrained("lab/nest")
print(snapshot_download("lab/nest", local_dir=sys.argv[1]))
verify(sys.argv[1])
"""


@pytest.mark.slow
def test_pretraining_is_pushed_once_and_comes_back_byte_for_byte(hub, python, folder, tmp_path):
    done = python(*pretrain(folder, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert [commit.message for commit in hub.repositories["lab/nest"].commits] == [
        "initial commit",
        "NEST pretraining",
    ]
    files = hub.repositories["lab/nest"].head.files
    assert {"model.safetensors", "config.json", "README.md", "stage.json", "config_resolved.yaml"} <= files.keys()
    assert not [name for name in files if name.startswith(("checkpoint", "train", "predictions", "audio_report"))]
    done = python("-c", LOAD_PRETRAINED, tmp_path / "download")
    assert done.returncode == 0, done.stderr
    assert local(tmp_path / "download", files) == files
    assert {path: data for path, data in files.items() if path != ".gitattributes"} == local(
        tmp_path / "run", files.keys() - {".gitattributes"}
    )
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.eval_results[0].dataset_name == "dev"
    again = python(*pretrain(folder, tmp_path / "run"))
    assert again.returncode == 0, again.stderr
    assert len(hub.repositories["lab/nest"].commits) == 2


LOAD_ADAPTER = """
import sys, torch
from nest_hf import NestAsrForConditionalGeneration, Transcriber
from peft import PeftModel
base = NestAsrForConditionalGeneration.from_pretrained(sys.argv[1])
merged = PeftModel.from_pretrained(base, "lab/adapter").merge_and_unload().state_dict()
beside = PeftModel.from_pretrained(NestAsrForConditionalGeneration.from_pretrained(sys.argv[1]), "lab/merged",
                                   subfolder="adapter").merge_and_unload().state_dict()
whole = NestAsrForConditionalGeneration.from_pretrained("lab/merged").state_dict()
assert whole.keys() == merged.keys() and all(torch.equal(whole[name], beside[name]) for name in whole)
assert all(torch.allclose(whole[name], merged[name], atol=1e-6) for name in whole)
Transcriber.from_pretrained("lab/merged")
"""


@pytest.mark.slow
def test_lora_is_pushed_as_an_adapter_and_as_a_whole_model_with_their_lineage(hub, python, folder, tmp_path):
    script = ["training/finetune.py", *data(folder), "--batch_budget", 10, *RUN]
    base = python(*script, *asr(folder), "--stage", "joint", "--output_dir", tmp_path / "base")
    assert base.returncode == 0, base.stderr
    lora = [
        "--model_name_or_path",
        tmp_path / "base",
        "--lora",
        '{"r": 2}',
        "--stage",
        "lora",
        "--push_to_hub",
        "true",
    ]
    for name, merge in (("merged", "true"), ("adapter", "false")):
        options = ["--hub_model_id", f"lab/{name}", "--output_dir", tmp_path / name, "--merge", merge]
        done = python(*script, *lora, *options)
        assert done.returncode == 0, done.stderr
        text = hub.repositories[f"lab/{name}"].head.files["README.md"].decode()
        assert text.index("1. joint") < text.index("2. lora") and str(tmp_path) not in text
        assert "normalize(text, 'zh')" in text and "| dev | CER, % | language model, greedy |" in text
    files = hub.repositories["lab/merged"].head.files
    assert {"model.safetensors", "adapter/adapter_model.safetensors", "adapter/README.md"} <= files.keys()
    assert "model.safetensors" not in hub.repositories["lab/adapter"].head.files
    for card in (files["adapter/README.md"], hub.repositories["lab/adapter"].head.files["README.md"]):
        assert ModelCard(card.decode()).data.library_name == "peft" and str(tmp_path) not in card.decode()
    done = python("-c", LOAD_ADAPTER, tmp_path / "base")
    assert done.returncode == 0, done.stderr
    again = python(*script, *lora, "--hub_model_id", "lab/elsewhere", "--output_dir", tmp_path / "merged")
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    assert hub.repositories["lab/elsewhere"].head.files["model.safetensors"] == files["model.safetensors"]


# ---- tokens


def one_line(done) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_refused_token_is_one_line_before_training(hub, python, folder, tmp_path):
    line = one_line(python(*pretrain(folder, tmp_path / "run"), token="hf_wrong"))
    assert "the token was refused (401)" in line and "Training has not begun" in line
    assert "HF_TOKEN" in line and "hf_wrong" not in line
    assert "no token; set HF_TOKEN" in one_line(python(*pretrain(folder, tmp_path / "run"), token=None))
    assert not (tmp_path / "run" / "model.safetensors").exists() and not hub.repositories


@pytest.mark.slow
def test_a_token_that_is_taken_back_while_training_loses_nothing(hub, python, folder, tmp_path):
    hub.revoke_before = "/commit/"
    line = one_line(python(*pretrain(folder, tmp_path / "run")))
    assert f"The whole model is in {tmp_path / 'run'}; give the same command again" in line
    assert (tmp_path / "run" / "model.safetensors").exists() and len(hub.repositories["lab/nest"].commits) == 1
    hub.revoke_before, hub.tokens = None, {TOKEN}
    done = python(*pretrain(folder, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert len(hub.repositories["lab/nest"].commits) == 2


@pytest.mark.slow
@pytest.mark.parametrize("given", ["option", "environment"])
def test_no_token_is_printed_or_saved(hub, python, folder, tmp_path, given):
    command = [*pretrain(folder, tmp_path / "run"), "--report_to", "tensorboard"]
    done = python(*command, *(["--hub_token", TOKEN] if given == "option" else []),
                  token=None if given == "option" else TOKEN)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files) and any("tfevents" in path.name for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert not any(TOKEN.encode() in content for content in hub.repositories["lab/nest"].head.files.values())


# ---- a network that breaks


@pytest.fixture
def pushing(hub, tmp_path, monkeypatch):
    """A run's folder, and how it is pushed from this process, without the waits between attempts."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda s: None)
    out = tmp_path / "run"
    out.mkdir()
    make_model(out, seed=0)

    def push(repo_id: str, **options):
        args = NestTrainingArguments(
            output_dir=str(out), hub_model_id=repo_id, report_to="none", use_cpu=True, push_to_hub=True, **options
        )
        return push_run(args, commit_message="NEST pretraining")

    push.out = out
    return push


def make_model(out: Path, *, seed: int, shards: int = 2) -> None:
    """What a run leaves: weights in shards, a configuration, a record; and what must not be pushed."""
    for path in out.glob("*.safetensors"):
        path.unlink()
    rng = np.random.default_rng(seed)
    for shard in range(shards):
        tensor = torch.from_numpy(rng.standard_normal(20_000).astype(np.float32))
        save_file({f"w{shard}": tensor}, out / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors")
    (out / "config.json").write_text(json.dumps({"architectures": ["NestForPreTraining"], "seed": seed}))
    (out / "modeling_nest.py").write_text("# code\n" * 2000)
    (out / "eval_results.json").write_text('{"eval_dev_accuracy": 0.25}')
    fields = {"stage": "pretraining", "parent": None, "updates": 2, "config": {"seed": 1}}
    write_record(out, **fields, data={"train": {"recordings": 5, "hours": 0.5}})


def push_broken_once(hub, push, name: str, moment: int) -> None:
    """Pushes over a connection that breaks after `moment` bytes, which leaves all or nothing, and then again."""
    hub.objects.clear()
    hub.carried, hub.break_after = 0, moment
    with pytest.raises(OSError, match="the connection broke .* The whole model is in .* give the same"):
        push(name)
    hub.break_after = None
    commits = hub.repositories[name].commits if name in hub.repositories else []
    assert [list(commit.files) for commit in commits] in ([], [[".gitattributes"]])
    push(name)


def test_an_interrupted_push_leaves_all_or_nothing_and_runs_again(hub, pushing):
    pushing("lab/whole")
    due, total = hub.repositories["lab/whole"].head.files, hub.carried
    for number, moment in enumerate(random.Random(0).sample(range(total), 5)):
        name = f"lab/broken{number}"
        push_broken_once(hub, pushing, name, moment)
        commits = hub.repositories[name].commits
        assert len(commits) == 2 and commits[-1].files.keys() == due.keys()
        changing = {"README.md"}  # names the repository
        assert all(commits[-1].files[path] == due[path] for path in due.keys() - changing)


def test_a_short_break_is_overcome_without_a_word_from_the_user(hub, pushing):
    pushing("lab/whole")
    total = hub.carried
    for number, moment in enumerate(random.Random(1).sample(range(total), 5)):
        hub.objects.clear()
        hub.carried, hub.break_after, hub.recovers = 0, moment, True
        pushing(f"lab/short{number}")
        assert hub.break_after is None and len(hub.repositories[f"lab/short{number}"].commits) == 2


@pytest.mark.parametrize("call", ["/api/repos/create", "/preupload/", "PUT /lfs", "/commit/"])
def test_a_reply_that_is_lost_is_no_second_commit(hub, pushing, call):
    hub.lose_reply_to = call
    pushing("lab/lost")
    assert hub.lose_reply_to is None and len(hub.repositories["lab/lost"].commits) == 2


def test_an_upload_by_xet_that_fails_is_one_line_and_no_commit(hub, pushing, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(OSError, match=r"\(ConnectionError\)\. The whole model is in .* again to push it\.$"):
        pushing("lab/xet")
    assert len(hub.repositories["lab/xet"].commits) == 1
    assert set(hub.unknown) == {"GET /api/models/lab/xet/xet-write-token/main"}  # xet storage is none of the server's
    hub.unknown.clear()


def test_the_next_model_replaces_the_last_one_in_one_commit(hub, pushing):
    pushing("lab/twice")
    make_model(pushing.out, seed=1, shards=1)
    pushing("lab/twice")
    first, second = hub.repositories["lab/twice"].commits[1:]
    assert len([path for path in first.files if path.endswith(".safetensors")]) == 2
    assert [path for path in second.files if path.endswith(".safetensors")] == ["model-00001-of-00001.safetensors"]


def test_a_revision_is_a_branch_and_privacy_is_asked_for(hub, pushing):
    for _ in range(2):
        pushing("lab/branched", hub_revision="8khz", hub_private_repo=True)
    repository = hub.repositories["lab/branched"]
    assert repository.private and [len(commits) for commits in repository.branches.values()] == [1, 2]
    assert "config.json" in repository.at("8khz").files


def test_somebody_elses_commit_in_between_is_not_built_upon(hub, pushing, monkeypatch):
    pushing("lab/shared")
    make_model(pushing.out, seed=2)
    repository = hub.repositories["lab/shared"]

    def meanwhile(folder):
        repository.commits.append(type(repository.head)("theirs", repository.head.files, repository.head.sha))
        return files_to_push(folder)

    monkeypatch.setattr(hub_module, "files_to_push", meanwhile)
    with pytest.raises(OSError, match="another commit came in between"):
        pushing("lab/shared")
    assert repository.head.message == "theirs"


# ---- what is pushed, and what the card says


def test_only_the_model_is_pushed(tmp_path):
    model = (
        "adapter/adapter_config.json adapter/adapter_model.safetensors chat_template.jinja config.json "
        "ctc_tokenizer/vocab.json model.safetensors modeling_nest.py stage.json tokenizer.json"
    ).split()
    others = (
        "best/1.safetensors checkpoint-2/model.safetensors checkpoint-4.incomplete/config.json predictions/dev.jsonl "
        "train.log audio_report.jsonl training_args.bin hf_token begun.json runs/x/events.out trainer_state.json "
        ".cache/config.json call.wav"
    ).split()
    for name in model + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert files_to_push(tmp_path) == sorted(model)


def test_checkpoints_are_not_pushed_while_training(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--report_to", "none", "--use_cpu", "true"]
    assert parse_arguments(NestTrainingArguments, argv=argv)[0].hub_strategy == "end"
    for option in (["--hub_strategy", "every_save"], ["--hub_always_push", "true"]):
        with pytest.raises(ValueError, match="`hub_strategy` must stay `end`"):
            parse_arguments(NestTrainingArguments, argv=[*argv, *option])


def test_figures_are_named_by_set_metric_and_decoding():
    metrics = {
        "eval_dev_ctc_cer": 0.125,
        "eval_my_set_keyword_accuracy": 0.5,
        "eval_dev_cer": 0.1,
        "eval_dev_loss": 2.0,
    }
    found = {(f.dataset, f.name, f.decoding): f.value for f in figures(metrics | {"eval_dev_runtime": 3.0})}
    assert found == {
        ("dev", "CER", "CTC, greedy"): 12.5,
        ("my_set", "keyword accuracy", "language model, greedy"): 50.0,
        ("dev", "CER", "language model, greedy"): 10.0,
        ("dev", "loss", "nats"): 2.0,
    }


def test_a_card_gives_hours_lineage_and_figures_but_no_path_of_this_machine(tmp_path):
    parent, child = tmp_path / "first", tmp_path / "second"
    for out in (parent, child):
        out.mkdir()
        make_model(out, seed=len(out.name))
    config = {"audio_tower": str(parent), "language_model": "Qwen/Qwen3-0.6B", "eval_text_level": "zh"}
    hours = {"train": {"recordings": 1200, "hours": 12.5}, "dev": {"recordings": 7, "hours": None}}
    write_record(child, stage="joint", parent=None, updates=300, config=config, data=hours)
    (child / "config.json").write_text('{"architectures": ["NestAsrForConditionalGeneration"]}')
    (child / "eval_results.json").write_text('{"eval_dev_ctc_cer": 0.0625}')
    card = model_card(child, repo_id="lab/joint")
    text = str(card)
    assert str(tmp_path) not in text and "| train | 12.5 | 1,200 |" in text and "| dev | streamed | 7 |" in text
    assert text.index("1. pretraining: 2 updates, 0.5 h") < text.index("2. joint: 300 updates, 12.5 h")
    assert card.data.base_model == ["Qwen/Qwen3-0.6B"] and card.data.license is None and "None is stated" in text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("cer", 6.25, "dev")
    assert result.metric_name == "CER, % (CTC, greedy, normaliser zh)"


def test_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id("Qwen/Qwen3-0.6B")
    assert not any(map(is_hub_id, ("runs/nest", "/data/nest", "./nest/a", "nest", None)))
