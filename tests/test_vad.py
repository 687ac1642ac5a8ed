"""Segments at pauses: no speech is lost, none is too long; silero-vad runs offline."""

import sys

import numpy as np
import pytest
import torch

from nest_hf import vad
from nest_hf.long_audio import Window
from nest_hf.vad import merge_segments, speech_segments

RATE = 1000


def random_segments(rng, number=40):
    edges = np.cumsum(rng.integers(1, 4 * RATE, 2 * number))
    return [Window(*edge) for edge in edges.reshape(-1, 2).tolist()], int(edges[-1] + rng.integers(0, RATE))


@pytest.mark.parametrize("seed", range(20))
def test_merged_segments_hold_all_speech_in_order_within_the_limit(seed):
    rng = np.random.default_rng(seed)
    segments, num_samples = random_segments(rng)
    max_segment_s = float(rng.uniform(1, 20))
    merged = merge_segments(segments, num_samples, sampling_rate=RATE, max_segment_s=max_segment_s)
    speech, covered = np.zeros(num_samples, dtype=bool), np.zeros(num_samples, dtype=int)
    for start, end in segments:
        speech[start:end] = True
    for start, end in merged:
        assert 0 < end - start <= max_segment_s * RATE
        covered[start:end] += 1
    assert covered.max() == 1 and covered[speech].all()
    assert merged == sorted(merged)


def test_padding_reaches_the_middle_of_a_pause_and_long_pauses_part():
    segments = [Window(1000, 2000), Window(2100, 3000), Window(6000, 7000)]
    merged = merge_segments(segments, 7050, sampling_rate=RATE)
    assert merged == [Window(800, 3200), Window(5800, 7050)]
    apart = merge_segments(segments, 7050, sampling_rate=RATE, max_segment_s=1.3)
    assert apart == [Window(800, 2050), Window(2050, 3200), Window(5800, 7050)]
    assert merge_segments([Window(0, 5000)], 5000, sampling_rate=RATE, max_segment_s=2.0) == [
        Window(0, 1667),
        Window(1667, 3333),
        Window(3333, 5000),
    ]


def test_bad_segments_are_named():
    assert merge_segments([], 100, sampling_rate=RATE) == []
    for segments in ([Window(5, 5)], [Window(50, 90), Window(80, 95)], [Window(0, 101)], [Window(-1, 5)]):
        with pytest.raises(ValueError, match="segments"):
            merge_segments(segments, 100, sampling_rate=RATE)
    with pytest.raises(ValueError, match="max_segment_s"):
        merge_segments([Window(0, 5)], 100, sampling_rate=RATE, max_segment_s=0.0)
    with pytest.raises(ValueError, match="not finite"):
        speech_segments(np.full(100, np.nan), sampling_rate=16000)
    with pytest.raises(ValueError, match="mono"):
        speech_segments(np.zeros((2, 100)), sampling_rate=16000)


def voice(duration_s, rate):
    """A vowel: pulses of 120 Hz, wandering, through four resonances."""
    time = np.arange(int(duration_s * rate)) / rate
    phase = np.cumsum(120 * (1 + 0.1 * np.sin(2 * np.pi * 3 * time))) / rate
    wave = sum(
        np.cos(2 * np.pi * k * phase) * sum(np.exp(-(((120 * k - f) / 120) ** 2)) for f in (700, 1200, 2600, 3300))
        for k in range(1, 30)
    )
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time)
    return (0.3 * wave * syllables / np.abs(wave).max()).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_speech_is_found_between_silences_at_any_rate(rate):
    pytest.importorskip("silero_vad")
    silence = np.zeros(int(1.5 * rate), dtype=np.float32)
    wave = np.concatenate([silence, voice(2.0, rate), silence, voice(1.0, rate), silence])
    segments = speech_segments(wave, sampling_rate=rate)
    assert len(segments) == 2
    for (start, end), (true_start, true_end) in zip(segments, [(1.5, 3.5), (5.0, 6.0)], strict=True):
        assert abs(start / rate - true_start) < 0.4 and abs(end / rate - true_end) < 0.4


def test_loading_leaves_the_number_of_threads_alone():
    pytest.importorskip("silero_vad")
    for name in [name for name in sys.modules if name.startswith("silero_vad")]:
        del sys.modules[name]
    vad._silero.cache_clear()
    torch.set_num_threads(2)
    try:
        speech_segments(np.zeros(16000), sampling_rate=16000)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_silence_has_no_segment_and_nothing_lies_beyond_the_end():
    pytest.importorskip("silero_vad")
    assert speech_segments(np.zeros(16000), sampling_rate=16000) == []
    assert speech_segments(np.zeros(0), sampling_rate=44100) == []
    wave = voice(6.0, 16000)
    segments = speech_segments(wave, sampling_rate=16000, max_segment_s=2.0)
    assert all(0 <= start < end <= len(wave) and end - start <= 32000 for start, end in segments)
