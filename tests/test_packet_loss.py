"""Lost packets: how many, in what bursts, and what is played in their place."""

import numpy as np
import pytest

from nest_hf.data.packet_loss import CONCEALMENTS, conceal, draw_losses


def burst_lengths(lost: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(int), [0]])))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("options", [{}, {"mean_burst": 1.0}, {"mean_burst": 3.0},
                                     {"mean_burst": 4.0, "loss_in_burst": 0.5}])  # fmt: skip
@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_the_share_of_lost_packets_is_the_rate(rate, options):
    lost = draw_losses(400_000, rate, np.random.default_rng(0), **options)
    assert lost.mean() == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("mean_burst", [1.5, 4.0])
def test_bursts_have_the_mean_length_and_are_geometric(mean_burst):
    bursts = burst_lengths(draw_losses(400_000, 0.05, np.random.default_rng(0), mean_burst=mean_burst))
    assert bursts.mean() == pytest.approx(mean_burst, rel=0.05)
    # of a geometric length: P(1) = 1 / mean
    assert (bursts == 1).mean() == pytest.approx(1 / mean_burst, rel=0.05)


def test_the_first_packet_is_lost_as_often_as_any():
    first = [draw_losses(3, 0.2, np.random.default_rng(seed), mean_burst=3.0)[0] for seed in range(4000)]
    assert np.mean(first) == pytest.approx(0.2, abs=0.025)


def test_no_loss_at_rate_zero():
    assert not draw_losses(1000, 0.0, np.random.default_rng(0), mean_burst=2.0).any()


def voice(num_samples: int, rate: int = 8000) -> np.ndarray:
    """A buzz of 125 Hz with harmonics: periodic, as a vowel is."""
    seconds = np.arange(num_samples) / rate
    return sum(np.sin(2 * np.pi * 125 * k * seconds) / k for k in range(1, 20)).astype(np.float32) * 0.2


@pytest.mark.parametrize("method", CONCEALMENTS)
def test_received_packets_stay_and_the_input_is_not_changed(method):
    wave, lost = voice(1950), np.array([3, 4, 9])
    before = wave.copy()
    out = conceal(wave, lost, packet_size=160, sampling_rate=8000, method=method)
    np.testing.assert_array_equal(wave, before)
    assert out.shape == wave.shape and out.dtype == np.float32
    for packet in (0, 1, 7, 8, 11, 12):  # those after a loss may be cross-faded with what was played
        part = slice(packet * 160, (packet + 1) * 160)
        np.testing.assert_array_equal(out[part], wave[part])


def test_silence_and_repetition_are_what_they_say():
    wave = np.random.default_rng(0).standard_normal(800).astype(np.float32)
    silent = conceal(wave, [2], packet_size=160, sampling_rate=8000)
    assert not silent[320:480].any()
    repeated = conceal(wave, [2, 3], packet_size=160, sampling_rate=8000, method="repeat", fade=0.5)
    np.testing.assert_allclose(repeated[320:480], 0.5 * wave[160:320])
    np.testing.assert_allclose(repeated[480:640], 0.25 * wave[160:320])


@pytest.mark.parametrize("method", CONCEALMENTS)
def test_losses_at_the_edges_and_of_everything(method):
    wave = voice(500)
    for lost in ([0], [3], [0, 1, 2, 3]):
        out = conceal(wave, lost, packet_size=160, sampling_rate=8000, method=method)
        assert np.isfinite(out).all() and len(out) == 500
    assert not out.any()  # nothing was received, nothing can be repeated


def test_pitch_concealment_continues_a_periodic_voice():
    wave = voice(4000)
    for method, worst in (("pitch", 0.1), ("silence", 1.01)):
        out = conceal(wave, [10], packet_size=160, sampling_rate=8000, method=method)
        error = np.square(out - wave)[1600:1760].sum() / np.square(wave)[1600:1760].sum()
        assert error <= worst
        assert method == "pitch" or error > 0.9


def test_pitch_concealment_is_silent_after_60_ms():
    out = conceal(voice(4000), range(10, 20), packet_size=160, sampling_rate=8000, method="pitch")
    assert np.abs(out[1600 + 485 : 3200]).max() < 1e-6
    assert np.abs(out[1600:1680]).max() > 0.1


def test_pitch_concealment_leaves_no_jumps():
    wave = voice(4000)
    largest_step = np.abs(np.diff(wave)).max()
    out = conceal(wave, [10, 11, 17], packet_size=160, sampling_rate=8000, method="pitch")
    assert np.abs(np.diff(out)).max() < 1.5 * largest_step


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="silence, repeat, pitch"):
        conceal(voice(160), [0], packet_size=160, sampling_rate=8000, method="zeros")
