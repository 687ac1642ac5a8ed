"""The speech recognition pipeline: forms of audio, batches, chunks; the multimodal pipeline."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from test_remote_code import tiny_asr, tiny_ctc
from tiny_asr import waves
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, pipeline
from transformers.pipelines.audio_utils import ffmpeg_read

import nest_hf.pipelines
from nest_hf import NestSpeechRecognitionPipeline, Transcriber

TASK = "automatic-speech-recognition"
SECONDS = (0.5, 1.3, 2.6, 0.9, 3.1)


@pytest.fixture(scope="module")
def ctc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc")
    tiny_ctc(folder)
    return pipeline(TASK, model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def asr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asr")
    tiny_asr(folder)
    return pipeline(TASK, model=str(folder), device="cpu")


@pytest.fixture
def no_ffmpeg(monkeypatch):
    """Whatever decodes through the ffmpeg program fails, as where there is none."""

    def refuse(*_):
        pytest.fail("the ffmpeg program was asked for")

    assert callable(ffmpeg_read)
    monkeypatch.setattr("transformers.pipelines.automatic_speech_recognition.ffmpeg_read", refuse)
    monkeypatch.setattr(shutil, "which", lambda *_: None)


def tone(seconds, rate):
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)


def test_a_batch_of_mixed_lengths_gives_the_texts_of_each_alone(ctc):
    recordings = waves(*SECONDS)
    alone = [ctc(wave)["text"] for wave in recordings]
    assert any(alone)
    for batch_size in (2, 5):
        assert [result["text"] for result in ctc(recordings, batch_size=batch_size)] == alone


def test_padding_in_a_batch_adds_no_characters_and_no_times_behind_the_end(ctc):
    recordings = waves(*SECONDS)
    for unit in ("char", "word"):
        for wave, result in zip(recordings, ctc(recordings, batch_size=5, return_timestamps=unit), strict=True):
            assert result == ctc(wave, return_timestamps=unit)
            times = [chunk["timestamp"] for chunk in result["chunks"]]
            assert all(0 <= start <= end <= len(wave) / 16000 + 0.08 for start, end in times)
            assert "".join(chunk["text"] for chunk in result["chunks"]).replace(" ", "") == result["text"].replace(
                " ", ""
            )


@pytest.mark.parametrize("kind", ["ctc", "asr"])
def test_every_form_of_one_recording_gives_one_text(kind, request, no_ffmpeg, tmp_path):
    recognise = request.getfixturevalue(kind)
    wave = waves(1.5)[0]
    path = tmp_path / "call.wav"
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    data = path.read_bytes()
    column = {"path": "call.wav", "bytes": data}
    forms = [
        torch.from_numpy(wave),
        str(path),
        path,
        data,
        column,
        {"path": str(path), "bytes": None},
        {"raw": wave, "sampling_rate": 16000},
        {"array": wave, "sampling_rate": 16000, "path": "call.wav"},
    ]
    text = recognise(wave)["text"]
    for form in forms:
        assert recognise(form)["text"] == text
    assert [result["text"] for result in recognise(forms)] == [text] * len(forms)
    assert column == {"path": "call.wav", "bytes": data}, "the caller's dict was changed"


def test_a_column_of_datasets_is_transcribed_without_torchcodec(ctc, asr, no_ffmpeg, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = []
    for index, wave in enumerate(waves(0.6, 1.1)):
        paths.append(str(tmp_path / f"{index}.flac"))
        soundfile.write(paths[-1], wave, 16000)
    rows = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio(decode=False))
    for recognise in (ctc, asr):
        alone = [recognise(path)["text"] for path in paths]
        assert [recognise(row["audio"])["text"] for row in rows] == alone
        assert [result["text"] for result in recognise(row["audio"] for row in rows)] == alone
        for several in (rows, rows["audio"], iter(rows), tuple(paths)):  # whole rows; a column; any iterable
            assert [result["text"] for result in recognise(several)] == alone
        assert recognise({**rows[0], "text": "reference"}) == recognise(paths[0])


@pytest.mark.parametrize("rate", [8000, 44100])
def test_another_rate_is_resampled_to_that_of_the_model(ctc, rate):
    kept = nest_hf.pipelines.decoded({"array": tone(1.0, rate), "sampling_rate": rate}, 16000)["raw"]
    inner = slice(800, -800)
    assert abs(len(kept) - 16000) <= 1
    np.testing.assert_allclose(kept[inner], tone(1.0, 16000)[: len(kept)][inner], atol=1e-2)
    assert "text" in ctc({"raw": tone(1.0, rate), "sampling_rate": rate})


def test_the_stride_of_a_dict_is_counted_at_the_new_rate():
    audio = {"raw": tone(1.0, 8000), "sampling_rate": 8000, "stride": (800, 1600)}
    assert nest_hf.pipelines.decoded(audio, 16000)["stride"] == (1600, 3200)
    assert audio["stride"] == (800, 1600)


def test_chunks_cover_a_long_recording(ctc):
    wave = waves(12.0)[0]
    result = ctc(wave, chunk_length_s=4, return_timestamps="char")
    whole = ctc(wave, return_timestamps="char")
    assert result["text"]
    assert abs(result["chunks"][-1]["timestamp"][1] - whole["chunks"][-1]["timestamp"][1]) < 1.0


def test_nest_asr_runs_in_transcriber(asr):
    recordings = waves(*SECONDS)
    transcriber = Transcriber(asr.model, asr.processor)
    expected = transcriber(recordings, timestamps=True)
    results = asr(recordings, return_timestamps="char")
    for result, theirs in zip(results, expected, strict=True):
        assert result["text"] == theirs.text
        assert [chunk["text"] for chunk in result["chunks"]] == [item.text for item in theirs.characters]
        assert [chunk["timestamp"] for chunk in result["chunks"]] == [
            (item.start_s, item.end_s) for item in theirs.characters
        ]


@pytest.mark.parametrize("chunk_length_s", [3, 20])
def test_a_chunk_of_any_length_is_the_longest_window(asr, chunk_length_s):
    wave = waves(7.0)[0]
    assert asr(wave, chunk_length_s=chunk_length_s)["text"] is not None
    with pytest.raises(ValueError, match="`max_window_s`"):
        asr(wave, chunk_length_s=-1)


def test_an_iterable_is_read_as_its_results_are_taken(asr):
    taken = []
    recordings = (taken.append(index) or wave for index, wave in enumerate(waves(*SECONDS)))
    results = asr(recordings, batch_size=2)
    next(results)
    assert taken == [0, 1]


def test_defaults_of_a_call_can_be_given_to_the_pipeline(asr):
    parts = {name: getattr(asr, name) for name in ("model", "tokenizer", "feature_extractor", "processor")}
    recognise = pipeline(TASK, **parts, device="cpu", return_timestamps="char")
    assert "chunks" in recognise(waves(1.0)[0])


def test_what_has_no_effect_is_refused(ctc, asr):
    parts = {"tokenizer": asr.tokenizer, "device": "cpu"}
    with pytest.raises(ValueError, match="`num_beams` has no effect on NEST-ASR"):
        NestSpeechRecognitionPipeline(asr.model, processor=asr.processor, num_beams=2, **parts)
    with pytest.raises(ValueError, match="`processor` is missing"):
        NestSpeechRecognitionPipeline(asr.model, **parts)
    with pytest.raises(ValueError, match="`settings` are of NEST-ASR"):
        NestSpeechRecognitionPipeline(ctc.model, tokenizer=ctc.tokenizer, settings=asr.transcriber.settings)
    with pytest.raises(ValueError, match="`return_timestamps` is 'sentence'"):
        asr(waves(1.0)[0], return_timestamps="sentence")
    with pytest.raises(ValueError, match="a URL; download the file"):
        asr("https://example.org/call.wav")
    with pytest.raises(ValueError, match="`inputs` has the keys"):
        ctc({"wave": 1})


def test_other_models_run_as_in_transformers(ctc, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    front_end = {"conv_dim": (8,), "conv_stride": (320,), "conv_kernel": (320,), "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**sizes, **front_end, num_conv_pos_embeddings=4, vocab_size=8)
    monkeypatch.setattr(nest_hf.pipelines, "decoded", lambda *_: pytest.fail("decoded by us"))
    recognise = pipeline(
        TASK,
        model=Wav2Vec2ForCTC(config).eval(),
        tokenizer=ctc.tokenizer,
        feature_extractor=Wav2Vec2FeatureExtractor(),
        device="cpu",
    )
    assert "text" in recognise(waves(1.0)[0])


def test_the_multimodal_pipeline_hears(asr, tmp_path):
    wave = waves(1.0)[0]
    path = str(tmp_path / "call.wav")
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    generate = pipeline("any-to-any", model=asr.model, processor=asr.processor, device="cpu")
    expected = asr.processor.decode_answers(
        asr.model.generate(**asr.processor(audio=wave, sampling_rate=16000), max_new_tokens=6)
    )[0]
    for content in ({"type": "audio", "audio": wave}, {"type": "audio", "path": path}):
        chat = [{"role": "user", "content": [content]}]
        (result,) = generate(text=chat, max_new_tokens=6, return_full_text=False)
        assert result["generated_text"].strip() == expected
    with pytest.raises(ValueError, match="`images`, `videos` or `padding`"):
        asr.processor(audio=wave, images=[wave])
