"""CTC decoding against the definition: a loop over frames, and the sum over all alignments."""

import itertools

import pytest
import torch

from nest_hf.ctc_decoding import best_path, ctc_beam_search, ctc_greedy


def posteriors(batch, frames, classes, *, seed=0, sharpness=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(batch, frames, classes, generator=generator)).log_softmax(-1)


def collapsed(path, blank_id):
    return tuple(token for token, _ in itertools.groupby(path) if token != blank_id)


def all_texts(log_probs, blank_id):
    """Every text's log-probability by summing over all V^T alignments."""
    frames, classes = log_probs.shape
    texts = {}
    for path in itertools.product(range(classes), repeat=frames):
        score = log_probs[torch.arange(frames), torch.tensor(path)].sum()
        text = collapsed(path, blank_id)
        texts[text] = torch.logaddexp(texts[text], score) if text in texts else score
    return sorted(((score.item(), list(text)) for text, score in texts.items()), reverse=True)


@pytest.mark.parametrize("blank_id", [0, 4])
def test_greedy_is_the_collapsed_best_path_of_the_valid_frames(blank_id):
    log_probs, lengths = posteriors(6, 30, 5), [30, 17, 1, 0, 29, 5]
    expected = [
        list(collapsed(row[:length].argmax(-1).tolist(), blank_id))
        for row, length in zip(log_probs, lengths, strict=True)
    ]
    assert ctc_greedy(log_probs, torch.tensor(lengths), blank_id=blank_id) == expected


@pytest.mark.parametrize("blank_id", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_equals_exhaustive_search(blank_id, seed):
    log_probs = posteriors(3, 5, 3, seed=seed, sharpness=1.5)
    lengths = torch.tensor([5, 3, 4])
    results = ctc_beam_search(log_probs, lengths, blank_id=blank_id, beam_size=100, top_k=3, num_best=100)
    for row, length, hypotheses in zip(log_probs, lengths.tolist(), results, strict=True):
        expected = all_texts(row[:length], blank_id)
        assert len(hypotheses) == len(expected)
        scores = {tuple(h.token_ids): h.score for h in hypotheses}
        for score, text in expected:
            assert scores[tuple(text)] == pytest.approx(score, abs=1e-4)
        assert hypotheses[0].token_ids == expected[0][1]


def test_probabilities_of_all_texts_sum_to_one():
    hypotheses = ctc_beam_search(posteriors(1, 6, 3), blank_id=1, beam_size=200, top_k=3, num_best=200)[0]
    assert sum(torch.tensor(h.score).exp().item() for h in hypotheses) == pytest.approx(1.0, abs=1e-4)
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_a_beam_score_never_exceeds_the_ctc_probability_of_its_text():
    log_probs = posteriors(4, 25, 12, seed=3, sharpness=2.0)
    for row, hypotheses in zip(
        log_probs, ctc_beam_search(log_probs, blank_id=0, beam_size=4, num_best=4), strict=True
    ):
        for hypothesis in hypotheses:
            exact = -torch.nn.functional.ctc_loss(
                row[:, None], torch.tensor([hypothesis.token_ids]), [25], [len(hypothesis.token_ids)], reduction="sum"
            )
            assert hypothesis.score <= exact.item() + 1e-4


def test_the_beam_of_a_batch_equals_that_of_its_utterances():
    log_probs, lengths = posteriors(5, 40, 30, seed=1, sharpness=3.0), torch.tensor([40, 31, 8, 0, 1])
    together = ctc_beam_search(log_probs, lengths, blank_id=0, num_best=3)
    for index, length in enumerate(lengths.tolist()):
        alone = ctc_beam_search(log_probs[index : index + 1, :length], blank_id=0, num_best=3)[0]
        assert [h.token_ids for h in together[index]] == [h.token_ids for h in alone]
        assert [h.score for h in together[index]] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_what_lies_in_the_padding_is_never_read():
    log_probs = posteriors(2, 20, 6)
    spoilt = log_probs.clone()
    spoilt[:, 12:] = float("nan")
    lengths = torch.tensor([12, 12])
    assert ctc_greedy(spoilt, lengths, blank_id=0) == ctc_greedy(log_probs, lengths, blank_id=0)
    assert ctc_beam_search(spoilt, lengths, blank_id=0) == ctc_beam_search(log_probs, lengths, blank_id=0)


def test_empty_batch_and_no_frames():
    assert ctc_greedy(torch.zeros(0, 7, 3), blank_id=0) == []
    assert ctc_beam_search(torch.zeros(0, 7, 3), blank_id=0) == []
    assert ctc_greedy(torch.zeros(2, 0, 3), blank_id=0) == [[], []]
    nothing = ctc_beam_search(torch.zeros(2, 0, 3), blank_id=0)
    assert [[(h.token_ids, h.score) for h in row] for row in nothing] == [[([], 0.0)]] * 2


def test_bad_input_is_named():
    log_probs = posteriors(2, 9, 4)
    with pytest.raises(ValueError, match="lengths"):
        best_path(log_probs, torch.tensor([9, 10]), blank_id=0)
    with pytest.raises(ValueError, match="blank_id"):
        best_path(log_probs, blank_id=4)
    with pytest.raises(ValueError, match="batch, frames, classes"):
        best_path(log_probs[0], blank_id=0)
    with pytest.raises(ValueError, match="num_best"):
        ctc_beam_search(log_probs, blank_id=0, beam_size=2, num_best=3)
    log_probs[1, 3, 2] = float("nan")
    with pytest.raises(ValueError, match="utterance 1 has NaN"):
        ctc_greedy(log_probs, blank_id=0)
