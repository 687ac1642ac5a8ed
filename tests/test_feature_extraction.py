"""Log-mel features: NeMo's rules, NeMo's stored numbers, and what a waveform must not do to its neighbours."""

import golden
import numpy as np
import pytest
import soxr
import torch
from torch.nn import functional as F

from nest_hf import NestFeatureExtractor

LOG_GUARD = 2**-24
EPS = torch.finfo(torch.float32).eps


def wave(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def mel_power(samples: torch.Tensor, *, legacy: bool = False) -> torch.Tensor:
    """(samples,) -> (frames, M): NeMo's operations in NeMo's order, with NeMo's stored window and filters."""
    constants = golden.tensors("preprocessor")
    emphasized = torch.cat([samples[:1], samples[1:] - 0.97 * samples[:-1]])
    pad_mode = "reflect" if legacy else "constant"
    spectrum = torch.stft(
        emphasized, 512, 160, 400, constants["window"], center=True, pad_mode=pad_mode, return_complex=True
    )
    magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1))
    return (constants["mel_filterbank"][0] @ magnitude.pow(2.0)).T


def normalized(power: torch.Tensor, num_frames: int) -> torch.Tensor:
    log_mel = torch.log(power + LOG_GUARD)[:num_frames]
    centred = log_mel - log_mel.mean(0)
    return centred / ((centred**2).sum(0).div(num_frames - 1).sqrt() + 1e-5)


@pytest.mark.parametrize("which", [0, 1], ids=["clean", "noisy"])
def test_features_follow_the_rules(which):
    waves = golden.waves("tiny")[which]
    features = NestFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt")
    for samples, row, mask in zip(waves, features.input_features, features.attention_mask, strict=True):
        num_frames = len(samples) // 160
        assert mask.sum() == num_frames
        expected = normalized(mel_power(samples), num_frames)
        torch.testing.assert_close(row[:num_frames], expected, atol=1e-5, rtol=0)
        assert row[num_frames:].abs().max() == 0


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_features_equal_nemos(name):
    """
    Within 1e-5, plus the rounding that no float32 transform avoids. An FFT's error is a few eps of the frame's loudest
    bin, so a mel power P beside a loudest one of L is off by 2 sqrt(P L) eps; the logarithm divides that by P + guard,
    the normalisation by the deviation. Processors round differently: NeMo itself differs from its stored numbers so.
    """
    stored = golden.tensors("tiny/io")[f"features_{name}"].transpose(1, 2)
    waves = golden.waves("tiny")[name == "noisy"]
    features = NestFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == stored.shape
    errors = []
    for samples, ours, theirs in zip(waves, features, stored, strict=True):
        power = mel_power(samples)[: len(samples) // 160]
        deviation = torch.log(power + LOG_GUARD).std(0)
        rounding = 2 * (power * power.amax(1, keepdim=True)).sqrt() * EPS / (power + LOG_GUARD) / deviation
        error = (ours - theirs).abs()
        assert error[len(power) :].max() == 0
        error = error[: len(power)]
        assert (error <= 1e-5 + 3 * rounding).all(), (error / (1e-5 + 3 * rounding)).max()
        errors.append(error.flatten())
    errors = torch.cat(errors)
    assert errors.max() < 1e-3
    assert (errors <= 1e-5).float().mean() > 0.9  # 0.935 of the clean, 0.998 of the noisy bins


def test_log_mel_before_normalisation_equals_nemos_where_it_is_loud():
    power = mel_power(golden.waves("tiny")[0][0])[:187]
    stored = golden.tensors("tiny/io")["log_mel_clean_unnormalized_utt0"].T[:187]
    loud = power > 1e-3 * power.amax(1, keepdim=True)
    torch.testing.assert_close(torch.log(power + LOG_GUARD)[loud], stored[loud], atol=1e-5, rtol=0)


def test_filterbank_and_window_are_nemos():
    extractor, stored = NestFeatureExtractor(), golden.tensors("preprocessor")
    torch.testing.assert_close(extractor.mel_filters.T, stored["mel_filterbank"][0], atol=1e-9, rtol=0)
    torch.testing.assert_close(extractor.window, stored["window"], atol=1e-7, rtol=0)


@pytest.mark.parametrize("row", golden.facts("preprocessor")["lengths"], ids=lambda row: str(row["samples"]))
def test_length_table(row):
    features = NestFeatureExtractor()(
        torch.sin(torch.arange(row["samples"]) * 0.05) * 0.1, sampling_rate=16000, return_tensors="pt"
    )
    assert features.input_features.shape == (1, row["padded_frames"], 80)
    assert features.attention_mask.shape == (1, row["padded_frames"])
    assert int(features.attention_mask.sum()) == row["feature_length"]
    assert NestFeatureExtractor().num_frames(row["samples"]) == row["feature_length"]
    assert features.input_features.isfinite().all()  # also with 0 and 1 frames


def test_empty_waveform_is_finite():
    features = NestFeatureExtractor()([wave(0), wave(1600)], sampling_rate=16000, return_tensors="pt")
    assert features.attention_mask.sum(-1).tolist() == [0, 10]
    assert features.input_features.isfinite().all() and features.input_features[0].abs().max() == 0


def test_digital_silence_is_finite_and_small():
    features = NestFeatureExtractor()(torch.zeros(16000), sampling_rate=16000, return_tensors="pt")
    assert features.input_features.abs().max() < 1  # rounding of the mean divided by 1e-5; NeMo has -0.16


def test_batch_equals_singles():
    extractor, waves = NestFeatureExtractor(), [wave(n, seed=n) for n in (24017, 16000, 8001, 3333)]
    batch = extractor(waves, sampling_rate=16000, return_tensors="pt")
    for samples, row, mask in zip(waves, batch.input_features, batch.attention_mask, strict=True):
        single = extractor(samples, sampling_rate=16000, return_tensors="pt")
        num_frames = int(mask.sum())
        assert int(single.attention_mask.sum()) == num_frames
        torch.testing.assert_close(row[:num_frames], single.input_features[0, :num_frames], atol=1e-5, rtol=0)


def test_attention_mask_marks_a_prefix():
    features = NestFeatureExtractor()([wave(16000), wave(8000)], sampling_rate=16000, return_tensors="pt")
    assert features.attention_mask.dtype == torch.bool and features.input_features.dtype == torch.float32
    assert torch.equal(features.attention_mask, golden.valid(torch.tensor([100, 50]), 112))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_lists_and_tensors_are_the_same(dtype):
    samples = wave(4000)
    expected = NestFeatureExtractor()(samples, return_tensors="np").input_features
    for given in (samples.numpy().astype(dtype), samples.tolist(), [samples.numpy()], [samples.tolist()]):
        assert np.array_equal(NestFeatureExtractor()(given, return_tensors="np").input_features, expected)


def test_legacy_frontend_follows_the_rules_of_nemo_2_4():
    """Reflected edges, one frame more, and a pre-emphasis that leaves one sample in the padding."""
    extractor = NestFeatureExtractor(legacy_frontend=True)
    waves = [wave(16000, seed=1), wave(9000, seed=2)]
    features = extractor(waves, sampling_rate=16000, return_tensors="pt")
    assert features.attention_mask.sum(-1).tolist() == [101, 57]
    for samples, row in zip(waves, features.input_features, strict=True):
        num_frames = len(samples) // 160 + 1
        expected = normalized(mel_power(F.pad(samples, (0, 16000 - len(samples))), legacy=True), num_frames)
        torch.testing.assert_close(row[:num_frames], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="reflects 256 samples"):
        extractor(wave(200), sampling_rate=16000)


def test_wrong_rate_is_refused_or_resampled():
    extractor, samples = NestFeatureExtractor(), wave(8000).numpy()
    with pytest.raises(ValueError, match="`sampling_rate` is 8000 Hz but the model was trained on 16000 Hz"):
        extractor(samples, sampling_rate=8000)
    resampled = extractor(samples, sampling_rate=8000, resample=True, return_tensors="pt")
    expected = extractor(soxr.resample(samples, 8000, 16000), sampling_rate=16000, return_tensors="pt")
    assert resampled.attention_mask.sum() == 100
    assert torch.equal(resampled.input_features, expected.input_features)


@pytest.mark.parametrize("shape", [(2, 16000), (16000, 2)])
def test_stereo_array_is_refused(shape):
    with pytest.raises(ValueError, match="mono|channels"):
        NestFeatureExtractor()(np.zeros(shape, np.float32), sampling_rate=16000)
    with pytest.raises(ValueError, match="average the channels"):
        NestFeatureExtractor()([np.zeros(shape, np.float32)], sampling_rate=16000)


def test_no_waveform_is_refused():
    with pytest.raises(ValueError, match="`raw_speech` is empty"):
        NestFeatureExtractor()([], sampling_rate=16000)


def test_save_and_load_is_exact(tmp_path):
    extractor = NestFeatureExtractor(feature_size=64, preemphasis=0.9, pad_to_multiple_of=8, dither=0.0)
    extractor.save_pretrained(tmp_path)
    loaded = NestFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert "mel_filters" not in (tmp_path / "preprocessor_config.json").read_text()
    samples = wave(5000)
    assert torch.equal(
        loaded(samples, return_tensors="pt").input_features, extractor(samples, return_tensors="pt").input_features
    )
