import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny_asr import TOWERS, tiny_model, tiny_processor, waves
from transformers import AutoProcessor

from nest_hf.configuration_nest_asr import NestAsrConfig
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.processing_nest_asr import NestAsrProcessor

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
CONTEXT = "请结合上下文信息，更加准确地完成语音转写任务。如果没有相关信息，我们会留空。\n\n\n**上下文信息：**\n\n\n"
END = "<|object_ref_start|><|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize(
    ("request_fields", "user"),
    [
        ({}, "语音转写："),
        ({"language": "zh"}, "语音转写成中文："),
        ({"language": "English", "itn": False}, "语音转写成英文，不进行文本规整："),
        ({"keywords": ["a b", "c"]}, CONTEXT + "热词列表：[a b, c]\n语音转写："),
        ({"prompt": "a call", "itn": False}, CONTEXT + "a call\n语音转写，不进行文本规整："),
        (
            {"prompt": "a call", "keywords": "c", "language": "ja"},
            CONTEXT + "a call\n热词列表：[c]\n语音转写成日文：",
        ),
    ],
)
def test_prompts_are_the_words_of_fun_asr_nano(processor, request_fields, user):
    wave = waves(0.5)[0]
    prompts = processor.apply_transcription_request(wave, tokenize=False, **request_fields)
    assert prompts == [SYSTEM + user + END]
    made = processor(audio=wave, **request_fields)
    assert torch.equal(made["input_ids"], processor(audio=wave, text=prompts)["input_ids"])
    requested = processor.apply_transcription_request(wave, **request_fields)
    assert all(torch.equal(made[name], requested[name]) for name in made)


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "<|im_end|>"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_the_answer_and_its_end_token_alone(pad_token, side):
    """Also where the pad token is the end token, which then is learned and attended to."""
    processor = tiny_processor(pad_token=pad_token)
    texts = ["一二三", "", "四"]
    batch = processor(audio=waves(0.7, 1.9, 0.4), transcripts=texts, padding_side=side, keywords=["五"])
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for text, labels, ids, mask in zip(
        texts, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True
    ):
        answer = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert labels[labels != -100].tolist() == [*answer, end]
        assert ids[labels != -100].tolist() == [*answer, end] and mask[labels != -100].all()
        # the answer stands at the end of what is attended to
        assert (labels[mask.bool()][-len(answer) - 1 :] != -100).all()


def test_training_and_inference_have_the_same_prompt(processor):
    audio, request = waves(0.7, 1.9), {"language": ["zh", "en"], "keywords": [["一"], ["二", "三"]], "itn": False}
    training = processor(audio=audio, transcripts=["一二", "三"], **request)
    inference = processor(audio=audio, **request)
    for row in range(2):
        prompt = inference["input_ids"][row][inference["attention_mask"][row].bool()]
        text = training["input_ids"][row][training["attention_mask"][row].bool()]
        assert torch.equal(text[: len(prompt)], prompt)
        assert (training["labels"][row][: len(prompt)] == -100).all()
    assert torch.equal(training["input_features"], inference["input_features"])


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_tokens_are_counted_without_audio(kind, rate):
    processor = tiny_processor(kind=kind, num_stacked_frames=2, audio_token_divisor=3)
    rng = np.random.default_rng(0)
    lengths = [1, rate // 20, *rng.integers(rate // 10, 2 * rate, 8).tolist()]
    texts = ["一二三四五"[: n % 6] for n in range(len(lengths))]
    request = {"sampling_rate": rate, "language": "zh", "keywords": ["一"], "itn": False}
    batch = processor(audio=[np.ones(n, np.float32) for n in lengths], transcripts=texts, **request)
    counted = processor.num_tokens(lengths, texts, **request)
    assert counted.tolist() == batch["attention_mask"].sum(-1).tolist()
    prompts = processor(audio=[np.ones(n, np.float32) for n in lengths], **request)
    assert processor.num_tokens(lengths, **request).tolist() == prompts["attention_mask"].sum(-1).tolist()


def test_audio_of_another_rate_is_resampled(processor):
    time = np.arange(16000)
    tone = np.sin(2 * np.pi * 440 * time / 16000).astype(np.float32)
    wide = processor(audio=tone, sampling_rate=16000)
    narrow = processor(audio=tone[::2].copy(), sampling_rate=8000)
    assert torch.equal(wide["input_ids"], narrow["input_ids"])
    low = slice(0, 30)  # mel bins well below 4 kHz
    difference = (wide["input_features"] - narrow["input_features"])[0, 5:95, low]
    assert difference.abs().mean() < 0.2 * wide["input_features"][0, 5:95, low].abs().mean()


def test_a_path_is_the_waveform_in_it(processor, tmp_path):
    wave = (waves(0.5, sampling_rate=8000)[0].clip(-1, 1) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    from_path = processor(audio=tmp_path / "a.wav", sampling_rate=16000)
    from_wave = processor(audio=wave.astype(np.float32) / 32768, sampling_rate=8000)
    assert torch.equal(from_path["input_features"], from_wave["input_features"])


@pytest.mark.parametrize("kind", TOWERS)
def test_the_shortest_audio_gives_finite_features(kind):
    batch = tiny_processor(kind=kind)(audio=[np.array([0.5], dtype=np.float32)])
    assert batch["input_features"].isfinite().all() and batch["input_features_mask"].sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio": None}, "`audio` is missing"),
        ({"audio": []}, "`audio` is empty"),
        ({"audio": [np.zeros(0)]}, "not empty"),
        ({"audio": [np.zeros((2, 800))]}, "Average the channels"),
        ({"transcripts": ["a", "b"]}, "2 texts for 1 recordings"),
        ({"transcripts": "a<|im_end|>b"}, "token of the prompt"),
        ({"keywords": ["<|object_ref_start|>"]}, "token of the prompt"),
        ({"text": "no place for audio"}, "exactly one"),
        ({"text": ["<|object_ref_start|>"] * 2}, "2 prompts for 1"),
        ({"itn": [True, False]}, "`itn`"),
        ({"language": "klingon"}, "klingon"),
        ({"return_tensors": "np"}, "return_tensors"),
    ],
)
def test_bad_input_gets_a_message(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**{"audio": waves(0.3), **arguments})


def test_a_token_that_the_tokenizer_lacks_is_refused(processor):
    with pytest.raises(ValueError, match="`audio_token`"):
        NestAsrProcessor(processor.feature_extractor, processor.tokenizer, audio_token="<|audio|>")


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("ctc", [True, False])
def test_a_saved_processor_comes_back(kind, ctc, tmp_path):
    AutoProcessor.register(NestAsrConfig, NestAsrProcessor, exist_ok=True)
    processor = tiny_processor(kind=kind, ctc=ctc, num_stacked_frames=2, audio_token_divisor=4)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    arguments = {"audio": waves(0.7, 1.9), "transcripts": ["一二", "三 x"], "keywords": ["四"]}
    batch, again = processor(**arguments), loaded(**arguments)
    assert type(loaded) is NestAsrProcessor and ("ctc_labels" in batch) == ctc
    assert set(batch) == set(again) and all(torch.equal(batch[name], again[name]) for name in batch)
    if ctc:
        assert len(loaded.ctc_tokenizer) == len(processor.ctc_tokenizer)


def test_a_copy_without_the_ctc_tokenizer_says_what_is_missing(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "ctc_tokenizer")
    with pytest.raises(OSError, match=f"{tmp_path}: no tokenizer of the CTC head in its folder `ctc_tokenizer`"):
        NestAsrProcessor.from_pretrained(tmp_path)


def test_ctc_labels_may_be_another_text(processor):
    batch = processor(audio=waves(0.7, 1.9), transcripts=["一", "二"], ctc_transcripts=["一 三", "?"])
    tokenizer = processor.ctc_tokenizer
    first, second = (row[row != -100].tolist() for row in batch["ctc_labels"])
    assert tokenizer.convert_ids_to_tokens(first) == ["一", "|", "三"] and second == [tokenizer.unk_token_id]


def test_answers_are_decoded_without_their_prompts(processor):
    """Whatever stands in the answer, the placeholder included; left padding and other prompts change nothing."""
    batch = processor(audio=waves(0.7, 1.9), keywords=[["一"], ["二", "三"]])
    answers = processor.tokenizer(["四五", "一 "], padding=True, return_tensors="pt").input_ids
    sequences = torch.cat([batch["input_ids"], answers], dim=1)
    assert processor.decode_answers(sequences) == ["四五", "一"]
    assert processor.decode_answers(answers) == ["四五", "一"]
    stray = torch.full((2, 1), processor.audio_token_id)
    assert processor.decode_answers(torch.cat([sequences, stray, answers], dim=1)) == ["四五四五", "一 一"]


def test_a_model_that_counts_otherwise_is_refused(processor):
    model = tiny_model(processor)
    processor.check(model.config)
    for fields in ({"num_stacked_frames": 2}, {"audio_token_divisor": 8}, {"audio_token": "<|endoftext|>"}):
        with pytest.raises(ValueError, match="in the processor but"):
            tiny_processor(**fields).check(model.config)


def test_ctc_vocabulary_is_the_characters_of_the_texts():
    tokenizer = build_ctc_tokenizer(["你好 ok", "OK 你|"], min_count=2, do_lower_case=True)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "|": 2, "K": 3, "O": 4, "你": 5}
    assert tokenizer("Ok 你 好").input_ids == [4, 3, 2, 5, 2, 1] and tokenizer.decode([4, 3, 2, 5]) == "ok 你"
    assert tokenizer("").input_ids == [] and tokenizer.pad_token_id == 0
    with pytest.raises(ValueError, match="min_count"):
        build_ctc_tokenizer(["a"], min_count=2)
