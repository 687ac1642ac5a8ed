"""Minimal alignments: how many errors they hold, and which spans of the reference they keep whole."""

from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


class Span(NamedTuple):
    """Tokens `start` to `end` (exclusive), which read `keyword`."""

    start: int
    end: int
    keyword: str


def edit_counts(reference: Sequence, hypothesis: Sequence) -> tuple[int, int, int]:
    """Substitutions, deletions and insertions of one minimal alignment.

    >>> edit_counts("办理业务", "办业务吧")
    (0, 1, 1)
    """
    if reference == hypothesis:
        return 0, 0, 0
    kinds = [operation.tag for operation in Levenshtein.editops(reference, hypothesis)]
    substitutions = kinds.count("replace")
    deletions = kinds.count("delete")
    return substitutions, deletions, len(kinds) - substitutions - deletions


def spans_kept_whole(
    reference: Sequence, hypothesis: Sequence, spans: list[Span], images: set[Span] | frozenset[Span] = frozenset()
) -> dict[Span, int]:
    """
    Finds the spans of the reference that a minimal alignment keeps whole: all of their tokens matched, and contiguous
    in the hypothesis. Of all minimal alignments it takes one that keeps the most spans whole, and among these one
    that maps the most of them onto `images`.

    Args:
        reference, hypothesis: Sequences of tokens, such as strings of characters.
        spans (`list[Span]`): Spans of the reference, in order and without overlap.
        images (`set[Span]`, *optional*): Spans of the hypothesis.

    Returns:
        `dict[Span, int]`: Of each span kept whole, where it begins in the hypothesis.

    Example:
        >>> spans_kept_whole("办理", "办办理", [Span(0, 2, "办理")])
        {Span(start=0, end=2, keyword='办理'): 1}
    """
    in_reach = [span for span in spans if _occurs(reference[span.start : span.end], hypothesis)]
    if not in_reach:
        return {}
    kept = _kept_by_any_alignment(reference, hypothesis, in_reach)
    if len(kept) == len(in_reach) and all(_image(span, start) in images for span, start in kept.items()):
        return kept
    return _kept_by_the_best_alignment(reference, hypothesis, in_reach, images)


def _image(span: Span, start: int) -> Span:
    return Span(start, start + span.end - span.start, span.keyword)


def _occurs(part: Sequence, whole: Sequence) -> bool:
    if isinstance(whole, str):
        return part in whole
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))


def _kept_by_any_alignment(reference: Sequence, hypothesis: Sequence, spans: list[Span]) -> dict[Span, int]:
    """The spans that lie within one matching block of the alignment that the library happens to give."""
    blocks = [b for b in Levenshtein.opcodes(reference, hypothesis) if b.tag == "equal"]
    kept = {}
    for span in spans:
        for block in blocks:
            if block.src_start <= span.start and span.end <= block.src_end:
                kept[span] = block.dest_start + span.start - block.src_start
    return kept


def _kept_by_the_best_alignment(
    reference: Sequence, hypothesis: Sequence, spans: list[Span], images: set[Span] | frozenset[Span]
) -> dict[Span, int]:
    """Dynamic programming over (errors, -value) of the pairs of prefixes that a minimal alignment can pass."""
    distance = Levenshtein.distance(reference, hypothesis)
    surplus = len(hypothesis) - len(reference)
    ending = {span.end: span for span in spans}
    worth = len(spans) + 1  # of a span kept; more than all images together
    rows: list[dict[int, tuple[int, int]]] = []  # rows[i][j] for prefixes of i and j tokens
    whole: dict[tuple[int, int], Span] = {}  # the pairs that are reached best by a whole span
    for i in range(len(reference) + 1):
        row: dict[int, tuple[int, int]] = {}
        above = rows[-1] if rows else {}
        span = ending.get(i)
        # to leave the diagonal by k and to end at `surplus` takes |k| + |surplus - k| insertions and deletions
        first = max(i - (distance - surplus) // 2, 0)
        last = min(i + (distance + surplus) // 2, len(hypothesis))
        for j in range(first, last + 1):
            candidates = [(0, 0)] if i == j == 0 else []
            if j in above:
                candidates.append((above[j][0] + 1, above[j][1]))
            if j - 1 in row:
                candidates.append((row[j - 1][0] + 1, row[j - 1][1]))
            if j - 1 in above:
                errors, value = above[j - 1]
                candidates.append((errors + (reference[i - 1] != hypothesis[j - 1]), value))
            start = j - (i - span.start) if span else -1
            if span and start in rows[span.start] and reference[span.start : i] == hypothesis[start:j]:
                errors, value = rows[span.start][start]
                jump = (errors, value - worth - (_image(span, start) in images))
                if not candidates or jump < min(candidates):
                    whole[i, j] = span
                candidates.append(jump)
            best = min(candidates, default=None)
            if best and best[0] + abs(surplus - (j - i)) <= distance:
                row[j] = best
        rows.append(row)
    return _read_back(reference, hypothesis, rows, whole)


def _read_back(reference: Sequence, hypothesis: Sequence, rows: list[dict], whole: dict) -> dict[Span, int]:
    kept = {}
    i, j = len(reference), len(hypothesis)
    while i or j:
        if (i, j) in whole:
            span = whole[i, j]
            i, j = span.start, j - (i - span.start)
            kept[span] = j
            continue
        errors, value = rows[i][j]
        if i and j and rows[i - 1].get(j - 1) == (errors - (reference[i - 1] != hypothesis[j - 1]), value):
            i, j = i - 1, j - 1
        elif i and rows[i - 1].get(j) == (errors - 1, value):
            i -= 1
        else:
            j -= 1
    return dict(reversed(kept.items()))
