"""probe.py: any encoder of transformers is heard, a probe finds what there is, errors are clear."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_digits import digits_path, read_digits
from tiny_asr import tiny_model, tiny_processor
from transformers import (
    HubertConfig,
    HubertModel,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from nest_hf import NestConfig, NestFeatureExtractor, NestForPreTraining
from nest_hf.data import load_speech_dataset
from nest_hf.frozen_encoders import FrozenEncoder, cached_layer_means, recording_keys
from nest_hf.frozen_probe import ProbeSettings, probe, train_probe

SCRIPT = Path(__file__).parents[1] / "evaluation" / "probe.py"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONVOLUTIONS = {
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 8, 4],
    "conv_stride": [5, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
}
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": 20,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 200,
    "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1, "suppress_tokens": [],
}  # fmt: skip


def save(folder: Path, kind: str) -> str:
    """A tiny random encoder, saved as its users find it."""
    torch.manual_seed(7)
    masked = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
    plain = Wav2Vec2FeatureExtractor(return_attention_mask=False, do_normalize=True)
    speech = {**SIZES, **CONVOLUTIONS}
    encoder = {**SIZES, "subsampling_conv_channels": 8}
    if kind == "nest_asr":
        processor = tiny_processor()
        tiny_model(processor).save_pretrained(folder)
        processor.save_pretrained(folder)
        return str(folder)
    model, extractor = {
        "nest": lambda: (NestForPreTraining(NestConfig(**encoder, codebook_size=16)), NestFeatureExtractor()),
        "wav2vec2": lambda: (Wav2Vec2ForCTC(Wav2Vec2Config(**speech, feat_extract_norm="layer")), masked),
        "wav2vec2_without_mask": lambda: (Wav2Vec2ForCTC(Wav2Vec2Config(**speech)), plain),
        "hubert": lambda: (HubertModel(HubertConfig(**speech, feat_extract_norm="layer")), masked),
        "wavlm": lambda: (WavLMModel(WavLMConfig(**speech, feat_extract_norm="layer")), masked),
        "whisper": lambda: (WhisperForConditionalGeneration(WhisperConfig(**WHISPER)),
                            WhisperFeatureExtractor(chunk_length=4)),
        "parakeet": lambda: (ParakeetForCTC(ParakeetCTCConfig(encoder_config=ParakeetEncoderConfig(**encoder),
                                                              vocab_size=12, pad_token_id=11)),
                             ParakeetFeatureExtractor()),
    }[kind]()  # fmt: skip
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


KINDS = ("nest", "nest_asr", "wav2vec2", "wav2vec2_without_mask", "hubert", "wavlm", "whisper", "parakeet")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("probe_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nest(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("nest"), "nest")


@pytest.fixture
def run(script, nest, monkeypatch, tmp_path, caplog):
    def run(*argv: str, **given) -> dict:
        caplog.clear()
        data = {"train_data": digits_path("train"), "test_data": digits_path("test"), "label": "text"}
        given = {"encoders": f"ours={nest}", "output_dir": str(tmp_path / "out"), "num_seeds": "2"} | data | given
        given["device"] = "cpu"
        options = [part for name, value in given.items() for part in (f"--{name}", *value.split(" "))]
        monkeypatch.setattr("sys.argv", ["probe.py", *options, *argv])
        with caplog.at_level("INFO"):
            script.main()
        return json.loads((tmp_path / "out" / "probe.json").read_text())

    return run


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder_gives_a_mean_per_layer_that_no_batch_changes(kind, tmp_path):
    encoder = FrozenEncoder.from_pretrained(save(tmp_path, kind))
    _, waves = read_digits("test")
    together = encoder.layer_means(waves[:4])
    assert together.shape == (4, 3, 32) and together.isfinite().all()
    alone = torch.cat([encoder.layer_means([wave]) for wave in waves[:4]])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    assert together.std(0).max() > 1e-3  # recordings differ
    encoder.layer_means([np.zeros(10, np.float32)])  # a click of ten samples is heard too


@pytest.mark.parametrize("kind", ["nest", "wav2vec2", "parakeet"])
def test_the_mean_is_that_of_the_encoders_hidden_states(kind, tmp_path):
    encoder = FrozenEncoder.from_pretrained(save(tmp_path, kind))
    wave = read_digits("test")[1][0]
    inputs = encoder.extractor([wave], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(**inputs, output_hidden_states=True).hidden_states
    num_frames = hidden[0].shape[1]
    if kind != "wav2vec2":  # the features' own padding
        num_frames = -(-int(inputs["attention_mask"].sum()) // 8)
    expected = torch.stack([h[0, :num_frames].mean(0) for h in hidden])
    torch.testing.assert_close(encoder.layer_means([wave])[0], expected, atol=1e-5, rtol=1e-5)


def test_random_weights_depend_on_the_seed_alone(nest):
    encoders = [FrozenEncoder.from_pretrained(f"random:{nest}", seed=seed) for seed in (0, 0, 1)]
    fingerprints = [encoder.fingerprint for encoder in encoders]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert FrozenEncoder.from_pretrained(nest).fingerprint not in fingerprints


def test_a_lost_tensor_and_a_folder_without_a_model_are_errors(nest, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(nest).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    state = load_file(broken / "model.safetensors")
    del state["encoder.layers.0.norm_out.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors of its encoder"):
        FrozenEncoder.from_pretrained(str(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no model with a feature extractor"):
        FrozenEncoder.from_pretrained(str(tmp_path / "empty"))


def test_layers_are_computed_once_and_anew_for_other_recordings(nest, tmp_path, monkeypatch):
    rows = load_speech_dataset(digits_path("test"))
    encoder, keys = FrozenEncoder.from_pretrained(nest), recording_keys(rows)
    first, kept = cached_layer_means(encoder, rows, keys, tmp_path, batch_duration_s=2.0)
    assert not kept and first.shape == (15, 3, 32)
    expected = encoder.layer_means(read_digits("test")[1])
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=1e-4)  # in the order of the rows
    fewer = rows.select(range(5))
    _, kept = cached_layer_means(encoder, fewer, recording_keys(fewer), tmp_path)
    assert not kept
    monkeypatch.setattr(FrozenEncoder, "layer_means", None)
    again, kept = cached_layer_means(encoder, rows, keys, tmp_path)
    assert kept and torch.equal(again, first)


# --- the probe -------------------------------------------------------------------------------------------------------


def separable(layer: int, number=120, num_layers=4, width=16):
    """Recordings whose class shows in one layer only, whose scale is a thousandth of the others'."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 3
    means = torch.randn(number, num_layers, width, generator=rng)
    means[:, layer] = 1e-3 * (means[:, layer] * 0.3 + torch.nn.functional.one_hot(labels, width) * 2)
    return means, labels


@pytest.mark.parametrize("layer", [0, 2])
def test_a_probe_finds_the_layer_that_tells_the_classes(layer):
    means, labels = separable(layer)
    result = probe((means[:80], labels[:80]), (means[80:], labels[80:]), 3, num_seeds=2)
    assert result.accuracy > 0.95 and len(result.accuracies) == 2
    assert np.argmax(result.layer_weights) == layer and sum(result.layer_weights) == pytest.approx(1.0, abs=1e-5)


def test_without_anything_to_find_it_is_chance():
    means, _ = separable(0)
    labels = torch.randint(0, 3, (120,), generator=torch.Generator().manual_seed(5))
    means = torch.randn(means.shape, generator=torch.Generator().manual_seed(6))
    result = probe((means[:80], labels[:80]), (means[80:], labels[80:]), 3, num_seeds=3)
    assert 0.1 < result.accuracy < 0.6


def test_equal_seeds_train_equal_probes():
    means, labels = separable(1)
    weights = [train_probe(means, labels, 3, seed=seed, settings=ProbeSettings(num_epochs=3)).weight
               for seed in (0, 0, 1)]  # fmt: skip
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# --- the script ------------------------------------------------------------------------------------------------------


def test_table_and_json_hold_the_same(run, nest, caplog):
    report = run(encoders=f"ours={nest} scratch=random:{nest}")
    assert report["classes"] == ["0", "1", "6"] and report["num_train"] == 30 and report["num_test"] == 15
    assert report["accuracy_of_commonest_class"] == pytest.approx(1 / 3)
    for row in report["encoders"].values():
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracy_by_seed"])) and len(row["layer_weights"]) == 3
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    ours, scratch = report["encoders"]["ours"], report["encoders"]["scratch"]
    assert scratch["difference"]["accuracy"] == pytest.approx(scratch["accuracy"] - ours["accuracy"])
    assert "difference" not in ours
    said = caplog.text
    assert "text: 3 classes; 30 recordings to learn from, 15 to test on" in said
    for row in report["encoders"].values():
        assert f"{100 * row['accuracy']:.2f}" in said
    assert "from the cache" not in said
    again = run(encoders=f"ours={nest}", label="speaker")
    assert again["encoders"]["ours"]["source"] == nest and "from the cache" in caplog.text  # another label


@pytest.mark.parametrize(
    "given, message",
    [
        ({"label": "emotion"}, "`label` is 'emotion', which train_data does not have; its columns are .*speaker"),
        ({"label": "domain"}, "`label` 'domain' is empty in 30 of 30 recordings of train_data"),
        ({"encoders": "runs/nest"}, "`encoders` has 'runs/nest'; give name=model"),
        ({"encoders": "a=x a=y"}, "`encoders` has the name 'a' twice"),
        ({"num_epochs": "0"}, "`num_epochs` is 0"),
        ({"validation_share": "1.0"}, "`validation_share` is 1.0"),
        ({"encoders": "a=/no/such/folder"}, "/no/such/folder is no model"),
    ],
)
def test_bad_arguments_have_one_clear_message(run, given, message):
    with pytest.raises(ValueError, match=message):
        run(**given)


def part_of(tmp_path, name: str, part: str, keep) -> str:
    rows = load_speech_dataset(digits_path(part))
    path = tmp_path / f"{name}.parquet"
    rows.filter(keep).select_columns(["id", "audio", "text", "speaker", "duration"]).to_parquet(path)
    return str(path)


def test_data_that_cannot_be_probed_is_named(run, tmp_path):
    one = part_of(tmp_path, "one", "train", lambda row: row["text"] == "0")
    with pytest.raises(ValueError, match="`label` 'text' has one class in train_data, '0'"):
        run(train_data=one)
    two = part_of(tmp_path, "two", "train", lambda row: row["text"] != "6")
    with pytest.raises(ValueError, match="1 classes in test_data that train_data lacks: 6"):
        run(train_data=two)
    with pytest.raises(ValueError, match="15 recordings of `test_data` are in `train_data` too"):
        run(train_data=f"{digits_path('train')},{digits_path('test')}")
