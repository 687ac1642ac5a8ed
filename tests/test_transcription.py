"""Transcriber: a batch is its singles, windows lose nothing, the guard decides and says so, bad input is named."""

import json
import logging

import numpy as np
import pytest
import torch
from spoken_tones import utterance
from tiny_asr import tiny_model, tiny_processor, waves
from torch.nn import functional as F
from transformers import BatchFeature, Wav2Vec2Processor

from nest_hf import NestConfig, NestFeatureExtractor
from nest_hf.asr_outputs import NestAsrEncodedAudio
from nest_hf.ctc_decoding import ctc_greedy, ctc_text
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.decoding_settings import DecodingSettings
from nest_hf.modeling_nest import NestForCTC
from nest_hf.transcription import Transcriber
from nest_hf.vad import speech_segments

CHARACTERS = "一二三四五"
FRAME = 1280


# ---- a recogniser that hears exactly what a waveform spells


class SpelledExtractor:
    """Every frame of 80 ms of a waveform holds the id of a CTC class / 1000."""

    sampling_rate = 16000

    def __call__(self, waves, sampling_rate, return_tensors):
        rows = [torch.from_numpy(wave[: len(wave) // 160 * 160 : 160].copy())[:, None] for wave in waves]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        return BatchFeature({"input_features": pad(rows, batch_first=True), "attention_mask": mask})


def hearing_model(processor, answer=lambda text: text):
    """
    A tiny NEST-ASR that hears what is spelled, but nothing in its first and last three frames, and some windows a
    frame late; whose language model answers `answer` (a function of what is heard).
    """
    model = tiny_model(processor)
    processor.feature_extractor = SpelledExtractor()
    num_classes = len(processor.ctc_tokenizer)

    def encode_audio(features, mask):
        ids = (features[:, ::8, 0] * 1000).round().long()
        valid = mask[:, ::8]
        for row, length in zip(ids, valid.sum(-1).tolist(), strict=True):
            row[:3] = 0
            row[max(0, length - 3) :] = 0
            if row.sum() % 2:
                row[1:] = row[:-1].clone()
        return NestAsrEncodedAudio(last_hidden_state=12.0 * F.one_hot(ids, num_classes), mask=valid)

    def generate(input_ids, attention_mask, encoded_audio, max_new_tokens, **kwargs):
        log_probs = encoded_audio.last_hidden_state.log_softmax(-1)
        heard = ctc_greedy(log_probs, encoded_audio.mask.sum(-1), blank_id=0)
        texts = [answer(ctc_text(processor.ctc_tokenizer, ids)) for ids in heard]
        answers = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        answers = [(ids + [processor.end_token_id])[:max_new_tokens] for ids in answers]
        answers = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids) for ids in answers], batch_first=True, padding_value=processor.tokenizer.pad_token_id
        )
        generate.prompts += processor.tokenizer.batch_decode(input_ids)
        return torch.cat([input_ids, answers], dim=1)

    generate.prompts = []
    model.encode_audio, model.generate = encode_audio, generate
    model.ctc_logits = lambda encoded_audio: (encoded_audio.last_hidden_state, encoded_audio.mask)
    return model


def spell(text: str, frames, num_frames: int, tokenizer) -> np.ndarray:
    wave = np.zeros(num_frames * FRAME, dtype=np.float32)
    ids = tokenizer(list(text), add_special_tokens=False)["input_ids"] if text else []
    for (token,), frame in zip(ids, frames, strict=True):
        wave[frame * FRAME : (frame + 1) * FRAME] = token / 1000
    return wave


def say(text: str, processor) -> np.ndarray:
    """A character every four frames, silence around them."""
    return spell(text, range(5, 5 + 4 * len(text), 4), 4 * len(text) + 9, processor.ctc_tokenizer)


@pytest.fixture
def processor():
    return tiny_processor(texts=(CHARACTERS,))


# ---- one by one and together


@pytest.mark.parametrize("kind", ["nest", "parakeet_encoder", "fun_asr_nano_encoder"])
@pytest.mark.parametrize(("num_beams", "long_audio"), [(1, "windows"), (3, "windows"), (1, "pauses")])
def test_a_batch_gives_what_its_recordings_give_alone(kind, num_beams, long_audio):
    processor = tiny_processor(kind=kind)
    pieces = {"long_audio": long_audio, "max_window_s": 2.0, "overlap_s": 0.6}
    settings = DecodingSettings(num_beams=num_beams, batch_duration_s=5.0, guard=None, **pieces)
    transcriber = Transcriber(tiny_model(processor, kind), processor, settings=settings)
    recordings = waves(0.3, 1.7, 3.9, 0.9, 1.3, 1e-4)
    words = ["一二", "三四五", "五"]
    together = transcriber(recordings, hotwords=words, language="zh", timestamps=True)
    alone = [transcriber(wave, hotwords=words, language="zh", timestamps=True)[0] for wave in recordings]
    for whole, single in zip(together, alone, strict=True):
        assert (whole.text, whole.hotwords, whole.windows) == (single.text, single.hotwords, single.windows)
        assert [c.text for c in whole.characters] == [c.text for c in single.characters] == list(whole.text)
    assert len({result.text for result in together}) == len(recordings)  # answers that can be told apart
    numbers = [len(result.windows) for result in together]
    assert numbers[2] == 3 if long_audio == "windows" else numbers[2] >= 2
    assert numbers[:2] + numbers[3:] == [1] * 5


def test_every_answer_ends_at_the_limit_of_its_own_duration():
    processor = tiny_processor()
    model = tiny_model(processor)
    for num_beams in (1, 2):
        results = Transcriber(model, processor, settings=DecodingSettings(num_beams=num_beams))(waves(0.5, 4.0))
        for result, limit in zip(results, (6 + 16, 48 + 16), strict=True):
            decision = result.decisions[0]
            assert decision.num_tokens <= decision.max_new_tokens == limit
            assert result.hit_max_new_tokens == (decision.num_tokens == limit)


def test_recordings_of_any_rate_type_and_place_are_the_same(processor, tmp_path):
    import soundfile

    transcriber = Transcriber(tiny_model(processor), processor)
    (wave,) = waves(1.0)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    results = transcriber(
        [wave, torch.from_numpy(wave), wave.astype(np.float64), str(tmp_path / "a.wav"), tmp_path / "a.wav"]
    )
    assert all(result == results[0] for result in results)
    low = wave[::2]
    rates = transcriber([wave, low], sampling_rate=[16000, 8000])
    assert rates == [*transcriber(wave), *transcriber(low, sampling_rate=8000)]
    assert [result.duration_s for result in rates] == [1.0, 1.0]


def test_a_file_counts_its_own_seconds_and_the_average_of_its_channels(processor, tmp_path):
    import soundfile

    transcriber = Transcriber(tiny_model(processor), processor)
    (wave,) = waves(0.03)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, np.zeros_like(wave)], axis=1), 8000, subtype="FLOAT")
    (from_file,) = transcriber([tmp_path / "a.wav"])
    assert from_file.duration_s == 0.06
    assert [from_file] == transcriber(wave / 2, sampling_rate=8000)
    soundfile.write(tmp_path / "empty.wav", wave[:0], 8000)
    with pytest.raises(ValueError, match="recording 1 .* no samples"):
        transcriber([wave, tmp_path / "empty.wav"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["nest", "parakeet_encoder", "fun_asr_nano_encoder"])
def test_weights_of_half_precision_hear_nearly_the_same(kind, dtype):
    processor = tiny_processor(kind=kind)
    recordings = waves(0.5, 1.0, 3.0)
    options = {"hotwords": ["一二", "三四五"], "timestamps": True}
    settings = DecodingSettings(max_window_s=2.0, overlap_s=0.5)
    model = tiny_model(processor, kind)
    exact = Transcriber(model, processor, settings=settings)(recordings, **options)
    rough = Transcriber(model.to(dtype), processor, settings=settings)(recordings, **options)
    for a, b in zip(exact, rough, strict=True):
        assert abs(a.decisions[0].blank_mean - b.decisions[0].blank_mean) < 0.02
        assert b.characters is not None and "".join(timed.text for timed in b.characters) == b.text


def test_a_batch_of_many_short_recordings_has_room_for_their_prompts(processor):
    def sizes(num_beams, mode="lm"):
        settings = DecodingSettings(mode=mode, num_beams=num_beams, batch_duration_s=40.0)
        transcriber = Transcriber(tiny_model(processor), processor, settings=settings)
        return [len(batch) for batch in transcriber._batches([16000] * 16 + [64000])]

    assert sizes(1) == [5, 8, 4]  # 8 s each, then 5 s
    assert sizes(2) == [2, 4, 4, 4, 3]
    assert sizes(1, mode="ctc") == [10, 7]


# ---- CTC alone


def test_mode_ctc_never_runs_the_language_model(processor):
    model = tiny_model(processor)

    def refuse(*args, **kwargs):
        raise AssertionError("the language model ran")

    model.model.language_model.forward = model.generate = refuse
    recordings = waves(0.5, 1.0, 5.0)
    settings = DecodingSettings(mode="ctc", ctc_beam_size=4, max_window_s=2.0, overlap_s=0.5)
    results = Transcriber(model, processor, settings=settings)(recordings, timestamps=True)
    assert all(
        result.lm_text is None and result.text == result.ctc_text and not result.decisions for result in results
    )
    with pytest.raises(AssertionError, match="language model"):
        Transcriber(model, processor, settings=DecodingSettings(guard=None))(recordings)


def test_a_ctc_model_needs_no_settings_and_survives_its_folder(tmp_path):
    tokenizer = build_ctc_tokenizer([CHARACTERS])
    torch.manual_seed(0)
    config = NestConfig.from_preset("tiny", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model, processor = NestForCTC(config).eval(), Wav2Vec2Processor(NestFeatureExtractor(), tokenizer)
    recordings = waves(0.7, 2.0)
    results = Transcriber(model, processor)(recordings, timestamps=True)
    assert any(result.text for result in results)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert Transcriber.from_pretrained(tmp_path)(recordings, timestamps=True) == results
    with pytest.raises(ValueError, match="mode='ctc'"):
        Transcriber(model, processor, settings=DecodingSettings())
    model.encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no recogniser"):
        Transcriber.from_pretrained(tmp_path)


def test_a_recogniser_survives_its_folder(processor, tmp_path):
    model = tiny_model(processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recordings = waves(0.7, 2.0)
    results = Transcriber(model, processor)(recordings, hotwords=[CHARACTERS])
    assert Transcriber.from_pretrained(tmp_path)(recordings, hotwords=[CHARACTERS]) == results


# ---- the guard


def test_silence_is_empty_and_costs_no_language_model(processor):
    model = hearing_model(processor, answer=lambda text: "五五五")
    model.generate = None
    silence = np.zeros(32000, dtype=np.float32)
    lenient = DecodingSettings(hotword_threshold=-100.0)
    (result,) = Transcriber(model, processor, settings=lenient)([silence], hotwords=["一二"], timestamps=True)
    assert (result.text, result.ctc_text, result.lm_text, result.words) == ("", "", None, ())
    assert result.decisions[0].reason == "silence" and not result.hotwords


def test_a_loop_gives_the_ctc_text_and_the_decision_says_so(processor):
    recordings = [say("一二三", processor), say("五五", processor)]
    model = hearing_model(processor, answer=lambda text: "一" * 30 if "一" in text else text)
    loop, fine = Transcriber(model, processor)(recordings)
    assert (loop.text, loop.ctc_text, loop.lm_text) == ("一二三", "一二三", "一" * 30)
    assert (loop.decisions[0].source, loop.decisions[0].reason) == ("ctc", "loop")
    assert (fine.text, fine.decisions[0].reason) == ("五五", "ok")
    record = json.loads(json.dumps(loop.to_dict(), ensure_ascii=False))
    assert record["decisions"][0]["reason"] == "loop" and "characters" not in record
    off = Transcriber(model, processor, settings=DecodingSettings(guard=None))(recordings)
    assert off[0].text == "一" * 30 and off[0].decisions == ()


def test_answers_that_are_cut_off_are_counted_in_one_warning(processor, caplog):
    def chatter(text):
        return "，".join("一二三四五" * 40) if "一" in text else text

    recordings = [say("一二", processor), say("三", processor), say("一", processor)]
    with caplog.at_level(logging.WARNING):
        results = Transcriber(hearing_model(processor, answer=chatter), processor)(recordings)
    assert [result.hit_max_new_tokens for result in results] == [True, False, True]
    assert results[0].text == "一二"
    assert [r.getMessage() for r in caplog.records if "cut off" in r.getMessage()] == [caplog.records[-1].getMessage()]
    assert "2 of 3 recordings" in caplog.records[-1].getMessage()


# ---- hotwords


def test_of_a_thousand_hotwords_the_prompt_names_those_that_are_heard(processor):
    model = hearing_model(processor)
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("一二三四"), rng.integers(5, 12))) for _ in range(1100)}
    words = [*sorted(words)[:998], "五二五", "二五一"]
    recordings = [say("三五二五", processor), say("二五一四", processor), say("四四", processor)]
    results = Transcriber(model, processor)(recordings, hotwords=words)
    assert [result.hotwords for result in results] == [("五二五",), ("二五一",), ()]
    named = [prompt.split("热词列表：[")[-1].split("]")[0] for prompt in model.generate.prompts if "热词" in prompt]
    assert sorted(named) == ["二五一", "五二五"]
    lenient = DecodingSettings(hotword_threshold=-100.0, max_hotwords=7)
    results = Transcriber(model, processor, settings=lenient)(recordings, hotwords=words)
    assert [len(result.hotwords) for result in results] == [7, 7, 7]


# ---- long recordings


def spaced_text(rng, number: int, dense: bool):
    """Characters and their frames; where `dense`, without a pause anywhere."""
    frames = 6 + np.cumsum(rng.integers(2, 4 if dense else 9, number))
    return "".join(rng.choice(list(CHARACTERS), number)), frames


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("mode", ["lm", "ctc"])
@pytest.mark.parametrize("seed", range(5))
def test_no_character_is_lost_or_doubled_where_windows_meet(mode, seed, dense, processor):
    def punctuate(text):  # as a language model does, otherwise in each window
        return "".join(c + "，" * (i % 4 == 3) for i, c in enumerate(text))

    rng = np.random.default_rng(seed)
    texts, recordings, places = [], [], []
    for number in (80, 3, 150):
        text, frames = spaced_text(rng, number, dense)
        texts.append(text)
        places.append(frames)
        recordings.append(spell(text, frames, int(frames[-1]) + 7, processor.ctc_tokenizer))
    windows = {"long_audio": "windows", "max_window_s": 6.0, "overlap_s": 2.0}
    settings = DecodingSettings(mode=mode, batch_duration_s=30.0, **windows)
    model = hearing_model(processor, answer=punctuate)
    results = Transcriber(model, processor, settings=settings)(recordings, timestamps=True)
    for result, text, frames in zip(results, texts, places, strict=True):
        spoken = [timed for timed in result.characters if timed.text != "，"]
        assert "".join(timed.text for timed in spoken) == text == result.ctc_text
        assert result.text == "".join(timed.text for timed in result.characters)
        middles = np.array([(timed.start_s + timed.end_s) / 2 for timed in spoken])
        assert np.abs(middles - 0.08 * frames).max() <= 0.17
        assert all(a.end_s <= b.start_s + 1e-6 for a, b in zip(result.characters, result.characters[1:], strict=False))
        assert len(result.windows) == (1 if result.duration_s <= 6.0 else 1 + -(-(result.duration_s - 6.0) // 4.0))


def test_a_long_recording_records_the_decision_of_each_window(processor):
    text, frames = "一二三四五" * 8, 6 + 5 * np.arange(40)
    wave = spell(text, frames, 215, processor.ctc_tokenizer)
    wave[100 * FRAME : 165 * FRAME] = 0  # a whole window of 40 frames begins at 120
    settings = DecodingSettings(long_audio="windows", max_window_s=3.2, overlap_s=0.8)
    (result,) = Transcriber(hearing_model(processor), processor, settings=settings)(wave)
    assert "silence" in {decision.reason for decision in result.decisions}
    assert len(result.decisions) == len(result.windows)
    left_out = "".join(c for c, f in zip(text, frames, strict=True) if not 100 <= f < 165)
    assert result.text == result.lm_text == result.ctc_text == left_out
    assert not result.hit_max_new_tokens

    once = iter(["，".join(CHARACTERS * 60)])  # in one window alone the answer has no end
    model = hearing_model(processor, answer=lambda heard: next(once, heard))
    (chatty,) = Transcriber(model, processor, settings=settings)(wave)
    assert chatty.hit_max_new_tokens and chatty.text == left_out
    assert [decision.source for decision in chatty.decisions].count("ctc") == 1


def test_the_pieces_of_a_language_model_are_no_longer_than_what_it_was_trained_on(processor):
    model = hearing_model(processor)
    wave = np.concatenate([say("一二三四五", processor)] * 8)  # of 2.3 s each
    model.config.max_audio_s = 5.0
    for options, limit_s in (({}, 5.0), ({"max_window_s": 2.5}, 2.5), ({"mode": "ctc"}, 30.0)):
        settings = DecodingSettings(**options)
        (result,) = Transcriber(model, processor, settings=settings)(wave)
        assert result.ctc_text == "一二三四五" * 8
        assert max(end_s - start_s for start_s, end_s in result.windows) <= limit_s
        assert (len(result.windows) == 1) == (limit_s > result.duration_s)
    with pytest.raises(ValueError, match="share half"):
        Transcriber(model, processor, settings=DecodingSettings(overlap_s=3.0))


@pytest.mark.parametrize("seed", range(5))
def test_a_language_model_reads_a_long_recording_from_pause_to_pause(seed, processor):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(CHARACTERS), rng.integers(5, 8))) for _ in range(25)]
    recordings = [say(text, processor) for text in texts]
    heard = []
    model = hearing_model(processor, answer=lambda text: heard.append(text) or text)
    settings = DecodingSettings(max_window_s=3.3, overlap_s=1.6, batch_duration_s=20.0)
    (result, short) = Transcriber(model, processor, settings=settings)(
        [np.concatenate(recordings), recordings[0]], timestamps=True
    )
    assert sorted(heard) == sorted([*texts, texts[0]])  # each by itself, and none in two pieces
    assert result.text == result.lm_text == result.ctc_text == "".join(texts) and short.text == texts[0]
    assert "".join(timed.text for timed in result.characters) == result.text
    ends = np.cumsum([len(recording) for recording in recordings]) / 16000
    begins = np.append(0.0, ends[:-1])
    for (start_s, end_s), begin, end in zip(result.windows, begins, ends, strict=True):
        assert begin - 0.2 <= start_s <= end_s <= end + 0.2


def test_a_long_recording_without_speech_has_no_pieces(processor):
    settings = DecodingSettings(max_window_s=2.0, overlap_s=0.5)
    (result,) = Transcriber(hearing_model(processor), processor, settings=settings)(
        np.zeros(20 * 16000), timestamps=True
    )
    assert (result.text, result.windows, result.characters) == ("", (), ())


def test_segments_at_pauses_follow_one_another(processor, monkeypatch):
    from nest_hf import transcription
    from nest_hf.long_audio import Window

    tokenizer = build_ctc_tokenizer([CHARACTERS, "okgo"])
    processor = tiny_processor(texts=(CHARACTERS, "okgo"))
    parts = [spell(text, range(5, 5 + 4 * len(text), 4), 40, tokenizer) for text in ("一ok", "go", "二三")]
    windows = [Window(40 * FRAME * k, 40 * FRAME * (k + 1)) for k in range(3)]
    monkeypatch.setattr(transcription, "speech_segments", lambda wave, **options: windows)
    settings = DecodingSettings(long_audio="vad", max_window_s=4.0, overlap_s=1.0)
    transcriber = Transcriber(hearing_model(processor), processor, settings=settings)
    (result,) = transcriber(np.concatenate(parts), timestamps=True)
    assert result.text == result.ctc_text == "一ok go二三" == "".join(timed.text for timed in result.characters)
    assert result.windows == ((0.0, 3.2), (3.2, 6.4), (6.4, 9.6))
    go = next(word for word in result.words if word.text == "go")
    assert go.start_s == pytest.approx(3.2 + 0.4, abs=0.2)
    monkeypatch.setattr(transcription, "speech_segments", lambda wave, **options: [])
    (nothing,) = transcriber(np.concatenate(parts), timestamps=True)
    assert (nothing.text, nothing.characters, nothing.decisions, nothing.windows) == ("", (), (), ())


def test_voice_activity_divides_a_real_waveform(processor):
    pytest.importorskip("silero_vad")
    settings = DecodingSettings(long_audio="vad", max_window_s=2.0, overlap_s=1.0)
    silence = utterance("", np.random.default_rng(0))
    (result,) = Transcriber(tiny_model(processor), processor, settings=settings)(np.tile(silence, 6))
    assert result.windows == () and speech_segments(np.tile(silence, 6), sampling_rate=16000) == []


# ---- without a CTC head


def test_without_a_ctc_head_the_language_model_stands_alone():
    processor = tiny_processor(ctc=False)
    transcriber = Transcriber(tiny_model(processor), processor)
    results = transcriber(waves(0.5, 1.0), hotwords=["一二", "三四"])
    assert all(r.text == r.lm_text and r.ctc_text is None and r.decisions == () for r in results)
    assert results[0].hotwords == ("一二", "三四")
    with pytest.raises(ValueError, match="`timestamps` need a CTC head"):
        transcriber(waves(0.5), timestamps=True)
    with pytest.raises(ValueError, match="30 words"):
        transcriber(waves(0.5), hotwords=[f"一{i}" for i in range(30)])
    with pytest.raises(ValueError, match="recording 1 .* 31.0 s.*'vad'"):
        transcriber(waves(0.5, 31.0))
    with pytest.raises(ValueError, match="no CTC head"):
        Transcriber(tiny_model(processor), processor, settings=DecodingSettings(mode="ctc"))


# ---- bad input


def nan_at(index: int):
    recordings = waves(0.2, 0.2, 0.2)
    recordings[index][100] = np.nan
    return recordings


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([], "`audio` is empty"),
        ([*waves(0.2), np.zeros(0, np.float32)], "recording 1 .* no samples"),
        (nan_at(2), "recording 2 .* 1 samples that are NaN"),
        ([*waves(0.2), np.zeros((2, 100), np.float32)], r"recording 1 .* \(2, 100\); pass mono"),
        (np.zeros((2, 100), np.float32), "recording 0 .* mono"),
        ([*waves(0.2), np.zeros(100, np.int16)], "recording 1 .* int16; pass floats"),
        ([np.array(["a"])], "recording 0 .* pass floats"),
    ],
)
def test_bad_audio_is_one_message_with_its_number(audio, message, processor):
    with pytest.raises(ValueError, match=message):
        Transcriber(tiny_model(processor), processor)(audio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hotwords": "一二"}, "list of words"),
        ({"hotwords": ["一", ""]}, "none of them empty"),
        ({"hotwords": ["<|im_end|>"]}, "token of the prompt"),
        ({"sampling_rate": [16000, 8000]}, "2 values for 1 recordings"),
        ({"sampling_rate": 0}, "above 0"),
        ({"language": ["zh", "en"]}, "2 language"),
        ({"language": "xx"}, "xx"),
    ],
)
def test_bad_options_are_named(options, message, processor):
    with pytest.raises(ValueError, match=message):
        Transcriber(tiny_model(processor), processor)(waves(0.2), **options)


@pytest.mark.parametrize("options", [{"language": "zh"}, {"prompt": "一"}, {"itn": False}])
def test_what_has_no_effect_by_ctc_is_refused(options, processor):
    transcriber = Transcriber(tiny_model(processor), processor, settings=DecodingSettings(mode="ctc"))
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` ha.*no effect"):
        transcriber(waves(0.2), **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fast"}, "`mode` is 'fast'"),
        ({"long_audio": "cut"}, "`long_audio`"),
        ({"num_beams": 0}, "`num_beams` is 0"),
        ({"batch_duration_s": 0.0}, "`batch_duration_s`"),
        ({"overlap_s": 20.0, "max_window_s": 30.0}, "share half"),
        ({"overlap_s": 0.0}, "`overlap_s` is 0.0"),
        ({"max_window_s": 0.0}, "`max_window_s` is 0.0"),
        ({"mode": "ctc", "num_beams": 2}, "no language model"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings(**fields)
    with pytest.raises(TypeError, match="beams"):
        DecodingSettings(beams=2)
