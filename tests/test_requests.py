"""Columns `language`, `prompt`, `keywords` and `itn`: the same prompt in training and inference, from every source."""

import json

import datasets
import pytest
import torch
from spoken_tones import CHARACTERS, make_utterances
from tiny_asr import tiny_processor, waves

from nest_hf.asr_prompt import Request, request_in_prompt
from nest_hf.data import ExampleKey, load_speech_dataset
from nest_hf.data.labelled import LabelledCollator, LabelledDataset, labelled_lengths, load_labelled
from nest_hf.data.requests import read_requests

FULL = {"language": "zh", "prompt": "关于账单。", "keywords": ["天地", "人"], "itn": False}
REQUEST = Request("中文", "关于账单。", ("天地", "人"), False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    make_utterances(folder, 4, length=None, seed=0)
    return folder


def manifest(folder, tmp_path, *additions) -> str:
    """The folder's manifest with more columns in its first lines."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record, addition in zip(records, additions, strict=False):
        record.update(addition)
    for record in records:
        record["audio_filepath"] = str(folder / record["audio_filepath"])
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def batch_of(path: str) -> tuple[dict, object, object]:
    labelled = load_labelled(path, name="train")
    processor = tiny_processor(texts=(CHARACTERS, "关于账单。"))
    dataset = LabelledDataset(labelled, sampling_rate=16000)
    collator = LabelledCollator(processor, subsampling_factor=8)
    return collator([dataset[ExampleKey(0, (row,))] for row in range(len(labelled.rows))]), labelled, processor


def test_a_row_is_trained_with_the_prompt_that_asks_for_it(folder, tmp_path):
    batch, labelled, processor = batch_of(manifest(folder, tmp_path, FULL, {"language": "en"}, {"keywords": ["上"]}))
    asked = ({**FULL}, {"language": "en"}, {"keywords": ["上"]}, {})
    for row, options in enumerate(asked):
        (prompt,) = processor.apply_transcription_request(waves(1.0), tokenize=False, **options)
        ids = batch["input_ids"][row][(batch["labels"][row] == -100) & (batch["attention_mask"][row] == 1)]
        is_audio = ids == processor.audio_token_id
        once = ids[~is_audio | (is_audio.cumsum(0) == 1)]
        assert once.tolist() == processor.tokenizer(prompt, add_special_tokens=False).input_ids
    lengths = labelled_lengths(labelled, "llm_tokens", processor, 8)
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()


def test_without_the_columns_nothing_changes(folder, tmp_path):
    plain, labelled, processor = batch_of(manifest(folder, tmp_path))
    assert labelled.requests == [Request()] * 4
    waves_ = [LabelledDataset(labelled, sampling_rate=16000)[ExampleKey(0, (row,))].audio.wave for row in range(4)]
    inputs = processor(audio=waves_, transcripts=labelled.texts, ctc_transcripts=labelled.ctc_texts)
    assert all(torch.equal(plain[key], value) for key, value in inputs.items())
    nothing = {"language": None, "prompt": "", "keywords": [], "itn": None}
    empty, _, _ = batch_of(manifest(folder, tmp_path, nothing, {"keywords": " , "}))
    assert torch.equal(plain["input_ids"], empty["input_ids"])


def as_kind(kind: str, folder, tmp_path):
    """The same row in several kinds of sources."""
    path = manifest(folder, tmp_path, FULL)
    if kind == "manifest":
        return path
    if kind == "odd manifest":  # a blank line: read line by line
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")
        return path
    if kind == "text in the second row":
        return manifest(folder, tmp_path, FULL, {"keywords": "上，下"})
    rows = load_speech_dataset(path, name="rows").to_list()
    rows = [{**row, "keywords": FULL["keywords"] if index == 0 else None} for index, row in enumerate(rows)]
    dataset = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        dataset.to_parquet(tmp_path / "rows.parquet")
        return str(tmp_path / "rows.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["manifest", "odd manifest", "text in the second row", "parquet", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_source_brings_its_columns(kind, streaming, folder, tmp_path):
    rows = load_speech_dataset(as_kind(kind, folder, tmp_path), name="rows", streaming=streaming)
    if streaming:
        rows = datasets.Dataset.from_list(list(rows))
    requests = read_requests(rows, name="rows")
    assert requests[0] == REQUEST and requests[3] == Request()
    assert requests[1] == (Request(keywords=("上", "下")) if kind == "text in the second row" else Request())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": "ja"},
        {"itn": False},
        {"prompt": "a call"},
        {"keywords": ["一", "二 三"]},
        {"prompt": "两行\n的语音转写", "keywords": ["一"], "language": "en", "itn": False},
    ],
)
def test_a_prompt_of_the_template_gives_its_request_back(options):
    processor = tiny_processor()
    (prompt,) = processor.apply_transcription_request(waves(0.2), tokenize=False, **options)
    user = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0].replace(processor.audio_token, "")
    request = request_in_prompt(user)
    assert [processor._render(request)] == [prompt]
    names = {"ja": "日文", "en": "英文", None: None}
    assert request == Request(
        names[options.get("language")],
        options.get("prompt"),
        tuple(options.get("keywords", ())),
        options.get("itn", True),
    )


def test_the_request_of_a_funasr_line_is_no_context(folder, tmp_path):
    lines = []
    for user in ("语音转写：", "语音转写成英文，不进行文本规整："):
        speech = f"{user}<|startofspeech|>!{folder}/00{len(lines)}.wav<|endofspeech|>"
        turns = [("system", "You are a helpful assistant."), ("user", speech), ("assistant", "天地")]
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    (tmp_path / "funasr.jsonl").write_text("\n".join(lines) + "\n")
    labelled = load_labelled(str(tmp_path / "funasr.jsonl"), name="train")
    assert labelled.requests == [Request(), Request("英文", itn=False)]


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ({"language": "klingon"}, "row '.*-001': .*klingon.* rename the column"),
        ({"prompt": "语音转写成韩文："}, "row '.*-001': .*韩文"),
        ({"itn": "perhaps"}, "row '.*-001': `itn` is 'perhaps'"),
        ({"keywords": [1, 2]}, "`keywords` is .1, 2. where a list of words is due"),
    ],
)
def test_a_bad_value_names_its_row(addition, message, folder, tmp_path):
    path = manifest(folder, tmp_path, {}, addition)
    with pytest.raises(ValueError, match=message):
        load_labelled(path, name="train")
    if "keywords" not in addition:
        assert load_labelled(path, name="train", with_prompts=False).requests == [Request()] * 4
