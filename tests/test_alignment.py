"""Alignments: the counts of a public library, and spans kept whole exactly as trying every minimal alignment says."""

import functools
import random

import jiwer
import pytest

from nest_hf.alignment import Span, edit_counts, spans_kept_whole


def text(rng: random.Random, alphabet: str, longest: int) -> str:
    return "".join(rng.choices(alphabet, k=rng.randrange(longest + 1)))


def test_counts_equal_those_of_jiwer():
    rng = random.Random(0)
    for _ in range(500):
        reference, hypothesis = "好" + text(rng, "我要办理业务", 12), text(rng, "我要办理业务", 12)
        theirs = jiwer.process_characters(reference, hypothesis)
        assert edit_counts(reference, hypothesis) == (theirs.substitutions, theirs.deletions, theirs.insertions)


def test_tokens_may_be_words():
    assert edit_counts(["用", "iphone", "打"], ["用", "phone"]) == (1, 1, 0)


def minimal_alignments(reference: str, hypothesis: str):
    """All minimal alignments, each as the matched places {reference: hypothesis}."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replace = distance(i - 1, j - 1) + (reference[i - 1] != hypothesis[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replace)

    def paths(i: int, j: int):
        if not i and not j:
            yield {}
        if i and distance(i, j) == distance(i - 1, j) + 1:
            yield from paths(i - 1, j)
        if j and distance(i, j) == distance(i, j - 1) + 1:
            yield from paths(i, j - 1)
        if i and j:
            same = reference[i - 1] == hypothesis[j - 1]
            if distance(i, j) == distance(i - 1, j - 1) + (not same):
                yield from ({**path, i - 1: j - 1} if same else path for path in paths(i - 1, j - 1))

    return paths(len(reference), len(hypothesis))


def whole(span: Span, alignment: dict[int, int]) -> bool:
    start = alignment.get(span.start)
    return start is not None and all(
        alignment.get(place) == start + place - span.start for place in range(span.start, span.end)
    )


def random_spans(rng: random.Random, reference: str) -> list[Span]:
    spans, place = [], 0
    while place < len(reference):
        length = rng.randrange(1, 4)
        if rng.random() < 0.6 and place + length <= len(reference):
            spans.append(Span(place, place + length, reference[place : place + length]))
            place += length
        else:
            place += 1
    return spans


@pytest.mark.parametrize("alphabet", ["办理", "abc"])
def test_no_minimal_alignment_keeps_more_spans_whole(alphabet):
    rng = random.Random(1)
    for _ in range(2500):
        reference, hypothesis = text(rng, alphabet, 7), text(rng, alphabet, 7)
        spans = random_spans(rng, reference)
        kept = spans_kept_whole(reference, hypothesis, spans)
        alignments = list(minimal_alignments(reference, hypothesis))
        most = max(sum(whole(span, alignment) for span in spans) for alignment in alignments)
        together = [a for a in alignments if all(a.get(span.start) == start for span, start in kept.items())]
        assert len(kept) == most, (reference, hypothesis, spans)
        assert any(all(whole(span, a) for span in kept) for a in together), (reference, hypothesis, spans)


def test_a_span_that_any_minimal_alignment_keeps_whole_is_kept():
    rng = random.Random(2)
    for _ in range(2500):
        reference, hypothesis = text(rng, "办理业", 7), text(rng, "办理业", 7)
        for span in random_spans(rng, reference):
            possible = any(whole(span, alignment) for alignment in minimal_alignments(reference, hypothesis))
            assert (span in spans_kept_whole(reference, hypothesis, [span])) == possible


def test_among_the_best_alignments_one_maps_spans_onto_images():
    span = Span(0, 1, "甲")
    for start in (0, 1):
        image = Span(start, start + 1, "甲")
        assert spans_kept_whole("甲", "甲甲", [span], {image}) == {span: start}


def test_long_texts_stay_within_the_band_of_minimal_alignments():
    rng = random.Random(3)
    reference = "".join(rng.choices("我要办理业务贷款利率是多少", k=5000))
    hypothesis = "".join(character for character in reference if rng.random() > 0.01)
    spans = [Span(place, place + 2, "") for place in range(0, 5000, 50)]
    assert len(spans_kept_whole(reference, hypothesis, spans)) > 90
