"""Hotword filter: what is said is found, what is not is left out; the score is that of the best local alignment."""

import itertools
import logging

import numpy as np
import pytest
import torch
from ctc_posteriors import character_tokenizer, spike_path, spikes

from nest_hf.hotwords import HotwordFilter

TOKENIZER = character_tokenizer()
CLASSES = len(TOKENIZER)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def saying(text, frames, num_frames=40, **kwargs):
    return spikes(spike_path(ids(text), frames, num_frames), CLASSES, **kwargs)[None]


def found(words, log_probs, lengths=None, **kwargs):
    return [[h.text for h in row] for row in HotwordFilter(words, TOKENIZER, blank_id=0)(log_probs, lengths, **kwargs)]


def reference_score(log_probs, tokens, blank):
    """The best alignment of `tokens` with any stretch of frames, relative to the best path, by enumeration."""
    relative = (log_probs - log_probs.max(-1, keepdim=True).values).clamp_min(-30)
    best = -float("inf")
    for start, end in itertools.combinations(range(len(log_probs) + 1), 2):
        for path in itertools.product({blank, *tokens}, repeat=end - start):
            if [token for token, _ in itertools.groupby(path) if token != blank] == tokens:
                best = max(best, relative[torch.arange(start, end), torch.tensor(path)].sum().item())
    return best / len(tokens)


@pytest.mark.parametrize("word", ["今天", "天天", "今", "今天今"])
def test_the_score_is_that_of_the_best_local_alignment(word):
    for seed in range(3):
        log_probs = torch.randn(1, 5, CLASSES, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        score = HotwordFilter([word], TOKENIZER, blank_id=0).score(log_probs)[0, 0]
        assert score == pytest.approx(reference_score(log_probs[0], ids(word), 0), abs=1e-4)


def test_what_greedy_decoding_writes_scores_zero():
    log_probs = saying("我们去公园", [3, 7, 12, 20, 25])
    hotword_filter = HotwordFilter(["公园", "去公", "我们去公园", "们"], TOKENIZER, blank_id=0)
    assert hotword_filter.score(log_probs)[0] == pytest.approx(np.zeros(4), abs=1e-6)


def test_it_says_where_a_word_ends():
    hotword_filter = HotwordFilter(["去公", "公园"], TOKENIZER, blank_id=0)
    (words,) = hotword_filter(saying("我们去公园", [3, 7, 12, 20, 25]))
    assert {word.text: word.end for word in words} == {"去公": 20, "公园": 25}


def test_what_is_not_said_in_this_order_is_left_out():
    log_probs = saying("我们去公园", [3, 7, 12, 20, 25], peak=0.99)
    assert found(["园公", "公园", "天气", "我去", "哈"], log_probs) == [["公园"]]


def test_a_misheard_character_is_found_while_the_posteriors_admit_it():
    log_probs = saying("公好", [5, 10], peak=0.9).exp()
    log_probs[0, 10, ids("园")[0]] += 0.05  # exp(-2.9) of the best class
    log_probs = (log_probs / log_probs.sum(-1, keepdim=True)).log()
    assert found(["公园", "公哈"], log_probs, threshold=-2.0)[0] == ["公园"]


def test_a_repeated_character_needs_two_spikes():
    long_spike = saying("谢谢", [4, 5], peak=0.99)
    assert found(["谢谢"], long_spike) == [[]] and found(["谢"], long_spike) == [["谢"]]
    assert found(["谢谢"], saying("谢谢", [4, 7], peak=0.99)) == [["谢谢"]]


def test_an_utterance_does_not_depend_on_its_batch_nor_on_the_other_words():
    log_probs = 2 * torch.randn(3, 30, CLASSES, generator=torch.Generator().manual_seed(0))
    log_probs, lengths = log_probs.log_softmax(-1), [30, 11, 0]
    words = ["今天", "天气很好", "哈", "谢谢", "公园abc"]
    together = HotwordFilter(words, TOKENIZER, blank_id=0).score(log_probs, torch.tensor(lengths))
    for index, length in enumerate(lengths):
        for column, word in enumerate(words):
            alone = HotwordFilter([word], TOKENIZER, blank_id=0).score(log_probs[index : index + 1, :length])
            assert together[index, column] == pytest.approx(alone[0, 0], abs=1e-5) or length == 0


def test_padding_is_not_searched():
    log_probs = saying("公园", [5, 20], peak=0.99)
    log_probs[:, 15:] = float("nan")
    assert found(["公园", "公"], log_probs, torch.tensor([15])) == [["公"]]


def test_the_best_and_longest_come_first_up_to_the_maximum():
    log_probs = saying("我们去公园", [3, 7, 12, 20, 25])
    words = ["公园", "天气", "们去公园", "去公园"]
    assert found(words, log_probs, threshold=-30) == [["们去公园", "去公园", "公园", "天气"]]
    assert found(words, log_probs, max_hotwords=2) == [["们去公园", "去公园"]]


def test_unknown_characters_match_any_sound_but_two_of_three_must_be_known(caplog):
    log_probs = saying("我去公园", [3, 9, 20, 25], peak=0.99)
    words = ["去公X", "X去公", "天公X", "XYZ", "公XY", "公X", "去公X"]
    with caplog.at_level(logging.WARNING):
        hotword_filter = HotwordFilter(words, TOKENIZER, blank_id=0)
    assert hotword_filter.unscored == ["XYZ", "公XY", "公X"] and "3 of 6" in caplog.text
    assert {h.text for h in hotword_filter(log_probs)[0]} == {"去公X", "X去公"}


def heard_as(text, others, frames, num_frames=40, place=-1):
    """`text` is heard, and at one place also each of `others`, by so many nats less."""
    log_probs = saying(text, frames, num_frames, peak=0.9).exp()
    for character, nats in others.items():
        log_probs[0, frames[place], ids(character)[0]] = 0.9 * float(np.exp(-nats))
    return (log_probs / log_probs.sum(-1, keepdim=True)).log()


def test_a_word_that_another_one_outdoes_at_its_place_was_not_said():
    likely, unlikely = {"天": 2.0}, {"天": 4.0}
    assert found(["公园", "公天"], heard_as("公园", likely, [5, 10])) == [["公园", "公天"]]
    assert found(["公园", "公天"], heard_as("公园", unlikely, [5, 10])) == [["公园"]]
    assert found(["公天"], heard_as("公园", unlikely, [5, 10])) == [["公天"]]  # nothing in the list is better


def test_words_at_other_places_and_longer_words_are_not_outdone():
    log_probs = heard_as("公园公好", {"天": 3.5}, [5, 10, 20, 25], place=1)
    assert set(found(["公好", "公天"], log_probs)[0]) == {"公好", "公天"}  # which end 1.2 s apart
    misheard = heard_as("我去公园", {"们": 3.5}, [5, 10, 20, 25], place=0)
    assert set(found(["们去公园", "公园"], misheard)[0]) == {"们去公园", "公园"}  # the part is in the whole
    assert found(["们去公园", "我去公园"], misheard)[0] == ["我去公园"]


def test_words_that_are_not_searched_for_score_below_the_threshold():
    log_probs = 6 * torch.randn(3, 8, CLASSES, generator=torch.Generator().manual_seed(0))
    log_probs, lengths = log_probs.log_softmax(-1), torch.tensor([8, 3, 0])
    characters = [token for token in TOKENIZER.get_vocab() if len(token) == 1 and token != "|"]
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice([*characters, "X"], rng.integers(1, 6))) for _ in range(300)]
    hotword_filter = HotwordFilter(words, TOKENIZER, blank_id=0)
    scores = hotword_filter.score(log_probs, lengths)
    assert scores.shape == (3, len(hotword_filter.hotwords))
    for threshold in (-0.1, -0.5, -2.0):
        rows, words, totals, _ = hotword_filter._search(log_probs, lengths, threshold)
        left_out = np.ones(scores.shape, dtype=bool)
        left_out[rows, words] = False
        assert left_out.any(1).all() and scores[left_out].max() < threshold
        assert totals / hotword_filter.num_tokens[words] == pytest.approx(scores[rows, words], abs=1e-5)


def test_empty_lists_batches_and_utterances():
    assert found([], saying("公", [1])) == [[]]
    assert found(["公园"], torch.zeros(0, 5, CLASSES)) == []
    assert found(["公园"], torch.zeros(2, 0, CLASSES)) == [[], []]
    assert found(["公园", "公"], saying("公", [0], 1, peak=0.99)) == [["公"]]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="max_hotwords"):
        found(["公园"], saying("公", [1]), max_hotwords=0)
    with pytest.raises(ValueError, match="classes"):
        found(["abc"], torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="has NaN"):
        found(["公园"], torch.full((1, 5, CLASSES), float("nan")))
