"""Timestamps: known spikes give known times, whatever the batch, the characters and the padding."""

import itertools
import logging

import numpy as np
import pytest
import torch
from ctc_posteriors import character_tokenizer, spike_path, spikes

from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.timestamps import WILDCARD, TimedText, align_tokens, character_timestamps, word_timestamps

TOKENIZER = character_tokenizer()
CLASSES = len(TOKENIZER)
FRAME_S = 0.08


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def timed(text, spoken, frames, num_frames, **kwargs):
    """Characters of `text` on posteriors that say `spoken` at `frames`."""
    log_probs = spikes(spike_path(ids(spoken), frames, num_frames), CLASSES)[None]
    return character_timestamps(log_probs, None, [text], TOKENIZER, blank_id=0, **kwargs)[0]


def middles(characters):
    return [round((c.start_s + c.end_s) / 2 / FRAME_S) for c in characters]


def test_a_mark_is_the_interval_around_its_frame():
    characters = timed("今天", "今天", [3, 10], 20, boundary="mark", first_frame_s=0.0125)
    assert [c.text for c in characters] == ["今", "天"]
    for character, frame in zip(characters, [3, 10], strict=True):
        assert character.start_s == pytest.approx((frame - 0.5) * FRAME_S + 0.0125)
        assert character.end_s == pytest.approx((frame + 0.5) * FRAME_S + 0.0125)
        assert character.score == pytest.approx(0.9, abs=1e-3)


def test_neighbours_meet_half_way_and_pauses_stay_free():
    close = timed("今天", "今天", [3, 6], 20)
    assert close[0].end_s == close[1].start_s == pytest.approx(4.5 * FRAME_S)
    apart = timed("今天", "今天", [3, 16], 20, max_extension_s=0.1)
    assert apart[0].end_s == pytest.approx(3.5 * FRAME_S + 0.1)
    assert apart[1].start_s == pytest.approx(15.5 * FRAME_S - 0.1)
    unlimited = timed("今天", "今天", [3, 16], 20, max_extension_s=None)
    assert unlimited[0].start_s == 0 and unlimited[1].end_s == pytest.approx(19.5 * FRAME_S)


def test_times_are_ordered_and_inside_the_audio():
    rng = np.random.default_rng(0)
    for _ in range(20):
        frames = np.sort(rng.choice(30, 8, replace=False))
        text = "今天气很好我们去"
        characters = timed(text, text, frames, 30)
        times = [t for c in characters for t in (c.start_s, c.end_s)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= 29.5 * FRAME_S
        assert all(c.start_s <= frame * FRAME_S <= c.end_s for c, frame in zip(characters, frames, strict=True))


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2]])
@pytest.mark.parametrize("unheard", [None, 1, 2])
def test_the_path_is_the_best_of_all_alignments(tokens, unheard):
    for seed in range(5):
        log_probs = 2 * torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(seed))
        if unheard is not None:
            log_probs[..., unheard] -= 20.0
        log_probs = log_probs.log_softmax(-1)
        paths = [
            path
            for path in itertools.product(range(3), repeat=6)
            if [token for token, _ in itertools.groupby(path) if token] == tokens
        ]
        best = max(log_probs[0, torch.arange(6), torch.tensor(path)].sum().item() for path in paths)
        first, last, scores = align_tokens(log_probs, None, [tokens], blank_id=0)[0]
        path = np.zeros(6, dtype=int)
        for token, start, end, score in zip(tokens, first, last, scores, strict=True):
            path[start : end + 1] = token
            assert score == pytest.approx(log_probs[0, start : end + 1, token].exp().mean().item(), rel=1e-4)
        assert tuple(path) in paths
        assert log_probs[0, torch.arange(6), torch.tensor(path)].sum().item() == pytest.approx(best, rel=1e-5)


def test_a_batch_equals_its_utterances():
    texts, lengths = ["今天 天气很好", "哈哈哈", "", "谢谢88"], [40, 25, 9, 17]
    log_probs = torch.randn(4, 40, CLASSES, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    together = character_timestamps(log_probs, torch.tensor(lengths), texts, TOKENIZER, blank_id=0)
    for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        alone = character_timestamps(log_probs[index : index + 1, :length], None, [text], TOKENIZER, blank_id=0)[0]
        assert together[index] == alone
        assert "".join(c.text for c in alone) == text


def test_unknown_characters_lie_where_their_sound_is():
    """The recogniser writes 138, the CTC head says 一三八; the neighbours must not move."""
    characters = timed("今天138很好", "今天一三八很好", [4, 8, 20, 24, 28, 40, 44], 50, boundary="mark")
    found = middles(characters)
    assert found[:2] == [4, 8] and found[-2:] == [40, 44]
    assert all(abs(frame - true) <= 1 for frame, true in zip(found[2:5], [20, 24, 28], strict=True))
    assert [c.score is None for c in characters] == [False, False, True, True, True, False, False]


def test_punctuation_and_spaces_take_no_time():
    characters = timed("今天， 很好。", "今天很好", [4, 8, 14, 18], 25)
    silent = [c for c in characters if c.text in "， 。"]
    assert len(silent) == 3 and all(c.start_s == c.end_s and c.score is None for c in silent)
    assert middles([c for c in characters if c.text in "今天很好"]) == [4, 8, 14, 18]


def test_repeated_characters_have_a_spike_each():
    assert middles(timed("哈哈哈", "哈哈哈", [3, 7, 12], 18, boundary="mark")) == [3, 7, 12]


def test_more_characters_than_frames_are_spread_evenly(caplog):
    with caplog.at_level(logging.WARNING):
        characters = timed("今天气很好", "今", [1], 4)
    assert "spread evenly" in caplog.text
    assert [c.score for c in characters] == [None] * 5
    lengths = [c.end_s - c.start_s for c in characters]
    assert lengths == pytest.approx([3.5 * FRAME_S / 5] * 5)
    assert [c.score for c in timed("哈哈哈", "哈", [1], 4)] == [None] * 3  # two blanks are needed as well
    assert None not in [c.score for c in timed("哈哈哈", "哈", [1], 5)]


def test_nothing_known_no_frames_and_no_text():
    assert middles(timed("XY", "一二", [4, 8], 15, boundary="mark")) == [5, 7]
    assert timed("", "今", [2], 5) == []
    nowhere = character_timestamps(torch.zeros(1, 0, CLASSES), None, ["今，"], TOKENIZER, blank_id=0)[0]
    assert [(c.start_s, c.end_s) for c in nowhere] == [(0.0, 0.0), (0.0, 0.0)]
    assert character_timestamps(torch.zeros(0, 5, CLASSES), None, [], TOKENIZER, blank_id=0) == []


def test_minus_infinity_still_aligns():
    log_probs = spikes(spike_path(ids("今天"), [2, 5], 9), CLASSES)
    log_probs[:, ids("好")[0]] = float("-inf")
    found = character_timestamps(log_probs[None], None, ["好今天"], TOKENIZER, blank_id=0, boundary="mark")[0]
    assert middles(found[1:]) == [2, 5] and found[0].score < 1e-6


class PairTokenizer:
    """Tokens of two characters, and characters of two tokens, as byte-pair vocabularies have them."""

    is_fast, unk_token_id = True, 1

    def __call__(self, texts, **kwargs):
        return {
            "input_ids": [[2, 3, 4]] * len(texts),
            "offset_mapping": [[(0, 2), (2, 3), (2, 3)]] * len(texts),
        }


def test_tokens_that_are_groups_or_parts_of_characters():
    log_probs = spikes(spike_path([2, 3, 4], [3, 8, 10], 15), 5)[None]
    first, second, third = character_timestamps(log_probs, None, ["天气好"], PairTokenizer(), blank_id=0)[0]
    assert first.end_s == second.start_s and first.end_s - first.start_s == pytest.approx(
        second.end_s - second.start_s
    )
    assert third.start_s < 8 * FRAME_S and third.end_s > 10 * FRAME_S


def test_a_tokenizer_without_offsets_and_with_a_space_token():
    tokenizer = build_ctc_tokenizer(["go to 天"])
    text = "to X天go"
    path = spike_path(tokenizer("to|X天go").input_ids, [2, 4, 7, 11, 15, 18, 21], 26)
    log_probs = spikes(path, len(tokenizer))[None]
    characters = character_timestamps(log_probs, None, [text], tokenizer, blank_id=0, boundary="mark")[0]
    assert middles([c for c in characters if c.text not in " X"]) == [2, 4, 15, 18, 21]
    assert 4 < middles(characters)[3] < 15 and characters[3].score is None
    assert characters[2].start_s == characters[2].end_s == characters[1].end_s


def test_words_by_script_and_by_a_given_segmentation():
    def at(text):
        return [TimedText(c, float(i), i + 1.0, 0.5 if c != "3" else None) for i, c in enumerate(text)]

    words = word_timestamps(at("我用 iPhone，don't 3.5%好"))
    assert [w.text for w in words] == ["我", "用", "iPhone，", "don't", "3.5%", "好"]
    assert (words[2].start_s, words[2].end_s, words[2].score) == (3.0, 10.0, 0.5)
    words = word_timestamps(at("天气很好"), ["天气", "很", "好"])
    assert [(w.text, w.start_s, w.end_s) for w in words] == [("天气", 0, 2), ("很", 2, 3), ("好", 3, 4)]
    with pytest.raises(ValueError, match="is not the text"):
        word_timestamps(at("天气"), ["天", "汽"])


def test_bad_input_is_named():
    log_probs = torch.zeros(1, 5, CLASSES)
    with pytest.raises(ValueError, match="boundary"):
        character_timestamps(log_probs, None, ["今"], TOKENIZER, blank_id=0, boundary="middle")
    with pytest.raises(ValueError, match="2 texts for 1"):
        character_timestamps(log_probs, None, ["今", "天"], TOKENIZER, blank_id=0)
    with pytest.raises(ValueError, match="hold the blank"):
        align_tokens(log_probs, None, [[2, 0]], blank_id=0)
    with pytest.raises(ValueError, match="classes"):
        align_tokens(log_probs, None, [[CLASSES]], blank_id=0)
    assert align_tokens(log_probs, None, [[WILDCARD]], blank_id=0)[0][2] == [None]
