"""The small language model: what it reads as heard, what it learns to write, and bad input."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_asr import chatml_tokenizer

from nest_hf import NestAsrProcessor, NestFeatureExtractor
from nest_hf.asr_prompt import Request
from nest_hf.data.batching import ExampleKey
from nest_hf.language_model import SentenceCollator, SentenceDataset

SCRIPT = Path(__file__).parents[1] / "training" / "train_lm.py"
SENTENCES = ["我要办理业务", "好的谢谢您", "请问今天星期几"]
SMALL = '{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}'


@pytest.fixture(scope="module")
def processor():
    return NestAsrProcessor(NestFeatureExtractor(), chatml_tokenizer(SENTENCES))


HEARD = {"heard_share": 1.0, "mistakes": 0.0, "random_share": 0.0, "seed": 0}


def dataset(processor, **options):
    return SentenceDataset(SENTENCES, processor, **{**HEARD, **options})


def test_what_is_heard_without_mistakes_is_the_sentence_stretched(processor):
    sentences = dataset(processor)
    silence = processor.audio_token_id
    for row, text in enumerate(SENTENCES):
        prompt, answer = sentences[ExampleKey(0, (row,))]
        assert processor.tokenizer.decode(answer) == f"{text}<|im_end|>"
        heard = prompt[len(sentences.head) : len(prompt) - len(sentences.tail)]
        runs = [token for i, token in enumerate(heard) if token != silence and (i == 0 or heard[i - 1] != token)]
        assert processor.tokenizer.decode(runs) == text
        assert len(heard) >= len(text)


def test_characters_at_random_are_to_be_repeated_as_heard(processor):
    sentences = SentenceDataset(["我要办理业务" * 50], processor, **{**HEARD, "mistakes": 0.5, "random_share": 1.0})
    prompt, answer = sentences[ExampleKey(0, (0,))]
    text = processor.tokenizer.decode(answer).removesuffix("<|im_end|>")
    assert sorted(set(text)) == sorted("我要办理业务") and len(text) == 300 and text != "我要办理业务" * 50
    heard = prompt[len(sentences.head) : len(prompt) - len(sentences.tail)]
    spoken = processor.tokenizer.decode(heard[heard != processor.audio_token_id])
    assert [c for i, c in enumerate(text) if text[i - 1 : i] != c] == [
        c for i, c in enumerate(spoken) if spoken[i - 1 : i] != c
    ]  # nothing is wrong or missing, whatever `mistakes` says of sentences


def test_the_prompt_around_it_is_the_recognisers(processor):
    (expected,) = processor.with_placeholders(processor.prompts([Request()]), [0])
    prompt, _ = dataset(processor, heard_share=0.0)[ExampleKey(0, (1,))]
    assert prompt.tolist() == expected.tolist()


def test_mistakes_are_as_frequent_as_asked_and_follow_from_seed_epoch_and_row(processor):
    noisy = SentenceDataset(["我要办理业务" * 50], processor, **{**HEARD, "mistakes": 0.2})
    tokens = noisy.answers[0][:-1]
    draws = [noisy[ExampleKey(epoch, (0,))][0].tolist() for epoch in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    heard = noisy.heard(tokens, np.random.default_rng(0), 1.0)
    spoken = heard[heard != processor.audio_token_id]
    assert 0.5 * len(tokens) < len(spoken) / 2 < 0.9 * len(tokens)  # seven of ten mistakes replace, three leave out


def test_only_the_answer_is_learned(processor):
    examples = [dataset(processor)[ExampleKey(0, (row,))] for row in range(3)]
    batch = SentenceCollator(processor.tokenizer.pad_token_id)(examples)
    for row, (prompt, answer) in enumerate(examples):
        labels = batch["labels"][row]
        assert labels[labels != -100].tolist() == answer.tolist()
        assert batch["attention_mask"][row].sum() == len(prompt) + len(answer)


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 8) + "\n", encoding="utf-8")

    def run(*argv, out="lm"):
        given = ["--text", tmp_path / "text.txt", "--output_dir", tmp_path / out, "--use_cpu", "true", "--report_to",
                 "none", "--config_overrides", SMALL, "--per_device_train_batch_size", 8, *argv]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, given)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return tmp_path / out

    return run


def test_a_resumed_run_ends_as_an_uninterrupted_one_and_loads(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = ["--lr_scheduler_type", "constant", "--save_steps", 2, "--eval_text", tmp_path / "text.txt"]
    whole = run(*options, "--max_steps", 4, out="whole")
    run(*options, "--max_steps", 2, out="parts")
    parts = run(*options, "--max_steps", 4, out="parts")
    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = (whole / "model.safetensors").stat().st_mtime_ns
    run(*options, "--max_steps", 4, out="whole")  # complete: nothing is done again
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    tokenizer, model = AutoTokenizer.from_pretrained(whole), AutoModelForCausalLM.from_pretrained(whole)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert tokenizer.decode(tokenizer("我要办理业务", add_special_tokens=False).input_ids) == "我要办理业务"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--heard_share", 2], "`heard_share` is 2.0"),
        (["--model_name_or_path", "somewhere"], "`config_overrides` has no effect"),
        (["--txet", "a"], "did you mean `text`"),
        (["--text_level", "loud"], "`text_level` is 'loud'"),
    ],
)
def test_bad_input_gets_one_line(run, argv, message):
    with pytest.raises(SystemExit) as exit_:
        run(*argv)
    assert message in exit_.value.code and "\n" not in exit_.value.code.strip()


def test_files_without_text_or_of_another_encoding_are_refused(run, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "gbk.txt").write_bytes("我要办理业务".encode("gbk"))
    for name, message in (("empty.txt", "has no text"), ("gbk.txt", "is not UTF-8")):
        with pytest.raises(SystemExit, match=message):
            run("--text", tmp_path / name)
