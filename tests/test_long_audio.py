"""Windows cover any recording, and at a join nothing is lost or doubled."""

import numpy as np
import pytest
import torch
from ctc_posteriors import spike_path, spikes

from nest_hf.ctc_decoding import ctc_greedy
from nest_hf.long_audio import (
    cut_at_pauses,
    find_cuts,
    frame_levels,
    join_posteriors,
    join_timed_texts,
    plan_windows,
    shift,
)
from nest_hf.timestamps import TimedText

FRAME_S = 0.08


def cut_up(log_probs, *, window=50, overlap=10):
    starts = list(range(0, max(len(log_probs) - overlap, 1), window - overlap))
    return [log_probs[start : start + window] for start in starts], starts


def joined(pieces, starts):
    return join_posteriors(pieces, starts, find_cuts(pieces, starts, blank_id=0))


@pytest.mark.parametrize("num_samples", [1, 1279, 1280, 319_999, 320_000, 320_001, 576_000, 576_001, 5_000_000])
def test_windows_cover_every_sample_and_share_the_overlap(num_samples):
    windows = plan_windows(num_samples)
    assert windows[0].start == 0 and windows[-1].end == num_samples
    assert all(0 < w.end - w.start <= 320_000 and w.start % 1280 == 0 for w in windows)
    shared = [a.end - b.start for a, b in zip(windows, windows[1:], strict=False)]
    assert set(shared) <= {64_000}
    assert all(w.end - w.start > 64_000 for w in windows[1:])  # none adds nothing new
    assert (len(windows) == 1) == (num_samples <= 320_000)


def test_half_of_an_odd_number_of_frames_may_be_shared():
    assert [(w.start // 1280, w.end // 1280) for w in plan_windows(150 * 1280, window_s=6.0, overlap_s=3.0)] == [
        (0, 75), (38, 113), (76, 150)
    ]  # fmt: skip


def test_windows_of_nothing_and_of_bad_sizes():
    assert plan_windows(0) == []
    assert len(plan_windows(8000 * 60, sampling_rate=8000, samples_per_frame=640)) == 4
    with pytest.raises(ValueError, match="overlap_s"):
        plan_windows(100, overlap_s=11.0)
    with pytest.raises(ValueError, match="overlap_s"):
        plan_windows(100, overlap_s=0.0)
    with pytest.raises(ValueError, match="num_samples"):
        plan_windows(-1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_frames", [1, 10, 49, 50, 51, 90, 91, 333])
def test_windows_of_one_sequence_join_to_that_sequence(num_frames, seed):
    whole = torch.randn(num_frames, 4, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    assert torch.equal(joined(*cut_up(whole)), whole)


@pytest.mark.parametrize("seed", range(20))
def test_no_character_is_lost_or_doubled_where_spikes_move(seed):
    """Each window places the spikes up to one frame off, and its first and last four frames are nonsense."""
    rng = np.random.default_rng(seed)
    frames = np.cumsum(rng.integers(4, 9, 60))
    tokens = rng.integers(1, 4, 60)  # few classes: the same character often follows itself
    num_frames = int(frames[-1]) + 6
    pieces, starts = [], []
    for start in range(0, num_frames - 25, 75):
        end = min(start + 100, num_frames)
        moved = frames + rng.integers(-1, 2, 60)
        inside = (moved >= start) & (moved < end)
        piece = spikes(spike_path(tokens[inside], moved[inside] - start, end - start), 5, seed=seed)
        for edge in ([] if start == 0 else [slice(0, 4)]) + ([] if end == num_frames else [slice(-4, None)]):
            piece[edge] = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        pieces.append(piece)
        starts.append(start)
    assert ctc_greedy(joined(pieces, starts)[None], blank_id=0) == [tokens.tolist()]


def test_the_cut_keeps_clear_of_characters_and_of_the_edges():
    log_probs = spikes(spike_path([1, 2, 3], [60, 66, 80], 150), 5)
    pieces, starts = cut_up(log_probs, window=100, overlap=50)
    (cut,) = find_cuts(pieces, starts, blank_id=0)
    assert cut == 74  # the middle of 50 ... 99 is 74.5
    crowded = spikes(spike_path([1, 2] * 4, [68, 70, 72, 74, 76, 78, 80, 82], 150), 5)
    (cut,) = find_cuts(*cut_up(crowded, window=100, overlap=50), blank_id=0)
    assert min(abs(cut - frame) for frame in (68, 82)) == 3


def test_without_a_common_blank_the_windows_are_cut_where_they_agree():
    left, right = spikes([1] * 10, 4), spikes([1, 1, 1, 2, 1, 1, 3, 2, 2, 2], 4)
    (cut,) = find_cuts([left, right], [0, 0], blank_id=0)
    assert cut == 1  # inside the widest stretch on which they agree
    (cut,) = find_cuts([spikes([1] * 10, 4), spikes([2] * 10, 4)], [0, 4], blank_id=0)
    assert cut in (6, 7)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not reach"):
        find_cuts([torch.zeros(5, 3), torch.zeros(5, 3)], [0, 6], blank_id=0)
    with pytest.raises(ValueError, match="starts"):
        find_cuts([torch.zeros(5, 3)], [0, 6], blank_id=0)
    with pytest.raises(ValueError, match="no window"):
        join_posteriors([], [], [])
    with pytest.raises(ValueError, match="one cut less"):
        join_timed_texts([[], []], [0.0, 1.0], [])
    assert find_cuts([torch.zeros(5, 3), torch.zeros(5, 3)], [0, 5], blank_id=0) == [5]


def write(text, middles_s, offset_s=0.0):
    return [TimedText(c, t - 0.1 - offset_s, t + 0.1 - offset_s, 1.0) for c, t in zip(text, middles_s, strict=True)]


def text_of(characters):
    return "".join(c.text for c in characters)


@pytest.mark.parametrize("seed", range(30))
def test_texts_join_without_loss_where_times_differ(seed):
    """A character every 0.25 s, placed up to 0.1 s off, and any cut of the overlap, also one inside a character."""
    rng = np.random.default_rng(seed)
    times = 0.25 * np.arange(1, 100)
    text = "".join("谢好天"[i] for i in rng.integers(0, 3, len(times)))
    left, right = times < 16, times > 12
    moved = times + rng.uniform(-0.1, 0.1, len(times))
    pieces = [
        write(np.array(list(text))[left], times[left]),
        write(np.array(list(text))[right], moved[right], offset_s=12.0),
    ]
    result = join_timed_texts(pieces, [0.0, 12.0], [rng.uniform(12.3, 15.7)])
    assert text_of(result) == text
    assert max(abs((c.start_s + c.end_s) / 2 - t) for c, t in zip(result, times, strict=True)) < 0.21
    starts = [c.start_s for c in result]
    assert starts == sorted(starts)


def test_errors_at_the_edge_of_a_window_do_not_survive():
    left = write("今天天气很", [1, 2, 3, 4, 4.9]) + write("哈", [5.2])
    right = write("汽很好吗", [4.05, 4.9, 5.5, 6], offset_s=4.0)
    assert text_of(join_timed_texts([left, right], [0.0, 4.0], [4.6])) == "今天天气很好吗"


def test_a_character_that_one_window_doubles_is_joined_at_the_nearest():
    left, right = write("天谢谢", [4.0, 4.9, 5.1]), write("谢好", [4.9, 5.4])
    assert text_of(join_timed_texts([left, right], [0.0, 0.0], [5.2])) == "天谢好"


def test_only_equal_characters_are_a_joint():
    left, right = write("今天气汽", [1, 2, 3, 4]), write("气七好", [3, 4, 5])
    assert text_of(join_timed_texts([left, right], [0.0, 0.0], [3.9])) == "今天气七好"


def test_a_comma_that_wanders_is_no_joint():
    left = write("今", [1.5]) + [TimedText("，", 1.9, 1.9, None)] + write("天", [2.0])
    right = write("天", [2.0]) + [TimedText("，", 2.1, 2.1, None)] + write("好", [2.5])
    assert text_of(join_timed_texts([left, right], [0.0, 0.0], [1.95])) == "今，天，好"


def test_intervals_do_not_overlap_at_the_joint():
    left, right = write("天好", [1.0, 1.3]), write("好吗", [1.1, 1.35])
    result = join_timed_texts([left, right], [0.0, 0.0], [1.2])
    assert text_of(result) == "天好吗" and result[1].end_s == result[2].start_s == 1.4 < result[2].end_s


def test_punctuation_stays_once_at_the_joint():
    comma = [TimedText("，", 2.1, 2.1, None)]
    left = write("今天", [1, 2]) + comma + write("很", [3])
    right = write("天", [2]) + comma + write("很好", [3, 4])
    for cut_s in (1.9, 2.1, 2.9, 3.5):
        assert text_of(join_timed_texts([left, right], [0.0, 0.0], [cut_s])) == "今天，很好"


def test_texts_with_nothing_in_common_are_cut_in_time():
    left, right = write("今天", [1, 2]), write("好吗", [2.5, 3])
    assert text_of(join_timed_texts([left, right], [0.0, 0.0], [2.2])) == "今天好吗"
    assert text_of(join_timed_texts([left, []], [0.0, 0.0], [2.2])) == "今天"
    assert text_of(join_timed_texts([[], right], [0.0, 0.0], [2.2])) == "好吗"
    assert join_timed_texts([], [], []) == []
    assert shift(write("今", [1.0]), 2.0) == write("今", [3.0])


# ---- pieces between pauses


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("max_frames", "padding_frames"), [(1, 0), (7, 2), (30, 4), (30, 40), (1000, 4)])
def test_every_character_is_in_one_piece_that_is_short_enough(seed, max_frames, padding_frames):
    rng = np.random.default_rng(seed)
    path = torch.from_numpy(np.where(rng.random(400) < (0.05, 0.3, 1.0)[seed % 3], 1, 0))
    pieces = cut_at_pauses(path, rng.random(400), blank_id=0, max_frames=max_frames, padding_frames=padding_frames)
    assert all(0 <= start < end <= 400 and end - start <= max_frames for start, end in pieces)
    assert all(a[1] <= b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    inside = np.concatenate([np.arange(*piece) for piece in pieces])
    assert set(path.nonzero()[:, 0].tolist()) <= set(inside.tolist())
    assert all(path[start:end].any() for start, end in pieces)


def test_a_piece_is_cut_in_its_longest_pause_and_keeps_some_of_the_quiet():
    path, levels = torch.zeros(40, dtype=torch.long), np.ones(40)
    path[[4, 8, 12, 22, 26, 30]] = 1
    levels[[*range(3), *range(15, 21), *range(33, 40)]] = 0.01  # 13, 14 and 21 are still, or already, speech

    def cut(max_frames, padding_frames, levels=levels):
        return cut_at_pauses(path, levels, blank_id=0, max_frames=max_frames, padding_frames=padding_frames)

    assert cut(40, 20) == [(0, 40)]
    assert cut(35, 2) == [(1, 35)]
    assert cut(30, 2) == [(1, 17), (19, 35)]
    assert cut(30, 20) == [(0, 18), (18, 40)]
    assert cut(29, 0) == [(3, 15), (21, 33)]
    assert cut(20, 0, np.zeros(40)) == [(4, 13), (22, 31)]  # nothing but the path says what is speech
    assert cut_at_pauses(torch.zeros(9), np.ones(9), blank_id=0, max_frames=3, padding_frames=2) == []


def test_the_level_of_a_frame_is_its_power_and_that_of_its_neighbours():
    wave = np.concatenate([np.zeros(30), np.full(10, 3.0), np.zeros(25)])
    assert frame_levels(wave, 10, 8).tolist() == [0, 0, 3, 3, 3, 0, 0, 0]
    assert frame_levels(wave, 10, 4).tolist() == [0, 0, 3, 6]
