"""Codecs: G.711 bit for bit, lengths, delays, bad input."""

import io

import numpy as np
import pytest
import soundfile

from nest_hf.data.codecs import CODECS, g711, to_float32, to_int16, transcode

ALL_VALUES = np.arange(-32768, 32768).astype(np.int16)


@pytest.mark.parametrize(("law", "subtype"), [("mu", "ULAW"), ("a", "ALAW")])
def test_g711_is_libsndfiles_for_every_value(law, subtype):
    file = io.BytesIO()
    soundfile.write(file, ALL_VALUES, 8000, format="WAV", subtype=subtype)
    file.seek(0)
    np.testing.assert_array_equal(g711(ALL_VALUES, law=law), soundfile.read(file, dtype="int16")[0])


@pytest.mark.parametrize("law", ["mu", "a"])
def test_g711_has_256_values_and_decoding_them_again_changes_nothing(law):
    decoded = g711(ALL_VALUES, law=law)
    assert len(np.unique(decoded)) == {"mu": 255, "a": 256}[law]  # mu-law has two codes for 0
    np.testing.assert_array_equal(g711(decoded, law=law), decoded)


def test_g711_refuses_other_samples_and_laws():
    with pytest.raises(ValueError, match="float32.*int16"):
        g711(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match='"mu" or "a"'):
        g711(np.zeros(3, np.int16), law="u")


@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize("num_samples", [1, 160, 8000, 8123])
def test_a_codec_keeps_the_length(codec, num_samples):
    if "g726" in codec or "amr" in codec:
        pytest.importorskip("av")
    samples = (np.random.default_rng(0).standard_normal(num_samples) * 3000).astype(np.int16)
    once, twice = transcode(samples, codec), transcode(samples, codec)
    assert once.shape == samples.shape and once.dtype == np.int16
    np.testing.assert_array_equal(once, twice)


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_codec_does_not_delay(codec):
    if "g726" in codec or "amr" in codec:
        pytest.importorskip("av")
    rng = np.random.default_rng(1)
    noise = np.convolve(rng.standard_normal(16000), np.hanning(9), "same")  # low frequencies, where codecs are good
    loudness = np.repeat(rng.uniform(0.2, 1, 16), 1000)
    samples = (noise / np.abs(noise).max() * loudness * 12000).astype(np.int16)
    decoded = transcode(samples, codec).astype(float)
    lags = range(-100, 101)
    likeness = [np.dot(samples[200:-200], np.roll(decoded, -lag)[200:-200]) for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= 1  # samples; filters of AMR shift some frequencies by one


def test_rounding_clips_at_full_scale_and_keeps_16_bit_values():
    np.testing.assert_array_equal(to_int16(to_float32(ALL_VALUES)), ALL_VALUES)
    np.testing.assert_array_equal(to_int16(np.array([2.0, -2.0, 0.4 / 32768], np.float32)), [32767, -32768, 0])
