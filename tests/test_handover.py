"""The hand-over: a folder that is not what its stage wrote is refused, each time with what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_asr import tiny_model, tiny_processor

from nest_hf.handover import fingerprint, follow_pointer, read_record, verify, write_pointer, write_record


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    processor = tiny_processor()
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "train.log").write_text("")
    write_record(folder, stage="encoder")
    return folder


@pytest.fixture
def copy(stage, tmp_path):
    return shutil.copytree(stage, tmp_path / "copy")


def edit(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


NAME = "model.multi_modal_projector.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[NAME][0].mul_(1 + 1e-6), f"1 tensors were changed, such as `{NAME}`"),
        (lambda t: t.pop(NAME), f"1 tensors are missing, such as `{NAME}`"),
        (lambda t: t.update(other=t.pop(NAME)), f"`{NAME}` was renamed to `other`"),
        (lambda t: t.update(other=torch.zeros(2)), "1 tensors were added, such as `other`"),
        (lambda t: t.update({NAME: t[NAME].reshape(1, -1)}), "1 tensors were changed"),
    ],
)
def test_a_change_of_one_tensor_is_named(copy, change, message):
    assert verify(copy).sha256 == read_record(copy)["sha256"]
    edit(copy, change)
    with pytest.raises(ValueError, match=message) as error:
        verify(copy)
    assert "stage `encoder`" in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json"])
def test_a_change_of_configuration_or_tokenizer_is_named(copy, name):
    path = next(copy.rglob(name))
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=f"{name} changed"):
        verify(copy)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        verify(copy)


def test_logs_checkpoints_and_the_order_of_tensors_do_not_count(copy):
    before = fingerprint(copy)
    (copy / "train.log").write_text("more")
    (copy / "checkpoint-3").mkdir()
    save_file({"x": torch.zeros(1)}, copy / "checkpoint-3" / "model.safetensors")
    (copy / "checkpoint-3" / "config.json").write_text("{}")
    tensors = load_file(copy / "model.safetensors")
    save_file(dict(reversed(tensors.items())), copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy).sha256 == before.sha256 == verify(copy).sha256


def test_a_record_is_whole_or_not_there(copy):
    (copy / "stage.json").write_text('{"stage": "enc')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_record(copy)
    (copy / "stage.json").unlink()
    assert read_record(copy) is None
    assert verify(copy).sha256  # a folder without a record is taken as it is
    with pytest.raises(ValueError, match="no model folder"):
        fingerprint(copy / "ctc_tokenizer" if (copy / "ctc_tokenizer").is_dir() else copy.parent)


def test_a_pointer_survives_a_move(stage, tmp_path):
    shutil.copytree(stage, tmp_path / "run" / "1_encoder")
    write_pointer(tmp_path / "run" / "stage1_checkpoint.txt", tmp_path / "run" / "1_encoder")
    (tmp_path / "run").rename(tmp_path / "moved")
    found = follow_pointer(tmp_path / "moved" / "stage1_checkpoint.txt")
    assert json.loads(open(f"{found}/stage.json").read())["stage"] == "encoder"
    assert follow_pointer("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    shutil.rmtree(found)
    with pytest.raises(ValueError, match="1_encoder', which is no folder"):
        follow_pointer(tmp_path / "moved" / "stage1_checkpoint.txt")
