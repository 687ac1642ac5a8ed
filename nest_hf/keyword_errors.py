"""KWER as counts per utterance and per keyword."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .alignment import Span, spans_kept_whole
from .bootstrap import bootstrap_interval
from .error_rates import Texts, characters, paired
from .keywords import Keyword, KeywordFinder, read_keywords
from .text import check_level, normalize

MODES = ("align", "count", "legacy")


class KeywordEvent(NamedTuple):
    """
    What became of one keyword in one utterance.

    Attributes:
        row (`int`): The utterance, a position in `KeywordCounts.ids`.
        kind (`str`): `"correct"` or `"miss"`, where `span` is in the reference, or `"false_alarm"`, where it is in the
            hypothesis; both normalised and without spaces.
        span ([`~alignment.Span`]): Where, and which keyword.
    """

    row: int
    kind: str
    span: Span


@dataclass
class KeywordCounts:
    """
    The keyword errors of every utterance.

    Args:
        ids (`list`): Of the utterances; their positions where none were given.
        num_keywords, misses, false_alarms (`np.ndarray` of shape `(utterances,)`): Counts of keyword spans.
        by_keyword (`dict[str, np.ndarray]`): Of each keyword the spans in references and in hypotheses, misses and
            false alarms, shape (4,).
        groups (`dict[str, str | None]`): The group of each keyword.
        events (`list[KeywordEvent]`): In mode `align`, every keyword span of the corpus.
        num_missing (`int`): References without a hypothesis.
        settings (`dict`): Mode, normaliser level and options, recorded in every result.
    """

    ids: list
    num_keywords: np.ndarray
    misses: np.ndarray
    false_alarms: np.ndarray
    by_keyword: dict[str, np.ndarray]
    groups: dict[str, str | None]
    events: list[KeywordEvent] = field(default_factory=list)
    num_missing: int = 0
    settings: dict = field(default_factory=dict)

    @property
    def errors(self) -> np.ndarray:
        """(utterances,) misses + false alarms."""
        return self.misses + self.false_alarms

    def result(self, *, num_resamples: int = 1000, seed: int = 0) -> dict:
        """
        `kwer` and `kwer_miss` over the corpus, the 95 % bootstrap interval of `kwer`, accuracy (1 - `kwer_miss`),
        recall, precision and F1 over all spans (micro) and as means over the keywords that have one (macro), the
        counts, the tables `by_keyword` and `by_group`, and the settings. What has nothing to divide by is `None`.
        """
        total = int(self.num_keywords.sum())
        errors, totals = self.errors, self.num_keywords
        kwer = int(errors.sum()) / total if total else None
        if self.settings.get("mode") == "legacy" and total:
            errors, totals = self.misses / np.maximum(self.num_keywords, 1), np.ones(len(self.ids))
            kwer = float(errors.mean())
        interval = bootstrap_interval(errors, totals, num_resamples=num_resamples, seed=seed) if total else None
        rows = {
            keyword: {"group": self.groups[keyword], **_scores(counts)} for keyword, counts in self.by_keyword.items()
        }
        groups = dict.fromkeys(group or "ungrouped" for group in self.groups.values())
        by_group = {
            group: self._of([keyword for keyword, own in self.groups.items() if (own or "ungrouped") == group])
            for group in (groups if any(self.groups.values()) else ())
        }
        return {
            "kwer": kwer,
            "kwer_interval": interval and list(interval),
            **self._of(list(self.groups)),
            "by_keyword": rows,
            "by_group": by_group,
            "num_utterances": len(self.ids),
            "num_missing": self.num_missing,
            **self.settings,
        }

    def _of(self, keywords: list[str]) -> dict:
        """Micro figures of some keywords, and the macro means over them."""
        micro = _scores(np.sum([self.by_keyword[keyword] for keyword in keywords], axis=0))
        each = [_scores(self.by_keyword[keyword]) for keyword in keywords]
        for score in ("recall", "precision", "f1"):
            defined = [scores[score] for scores in each if scores[score] is not None]
            micro[f"{score}_macro"] = float(np.mean(defined)) if defined else None
        return micro


def keyword_errors(
    predictions: Texts,
    references: Texts,
    keywords: str | Path | Iterable[str | Keyword],
    *,
    mode: str = "align",
    ids: Iterable | None = None,
    level: str = "zh",
    remove_fillers: bool = False,
    fold_erhua: bool = False,
) -> KeywordCounts:
    """
    Counts missed keywords and false alarms.

    Mode `align` marks the keywords of reference and hypothesis and takes, of all minimal alignments, one that keeps
    the most keywords of the reference whole. A keyword of the reference that is not kept whole is a miss; one of the
    hypothesis that is not the image of a kept one is a false alarm. An alias counts as its keyword: both texts are
    compared with the keyword in its place. Keywords are found in text without spaces, also inside Latin words.

    Mode `count` compares, per utterance and keyword, how often it occurs; mode `legacy` is the mean over the
    utterances of the share that is missing by count. They exist to compare with others' figures.

    Args:
        predictions, references, ids, level, remove_fillers, fold_erhua: See [`~error_rates.character_errors`].
        keywords (a path, or an iterable of `str` or [`~keywords.Keyword`]): See [`~keywords.read_keywords`] for files.
        mode (`str`, *optional*, defaults to `"align"`): `"align"`, `"count"` or `"legacy"`.

    Example:
        >>> result = keyword_errors(["我要办业务"], ["我要办理业务"], ["办理", "办理业务"]).result()
        >>> result["num_keywords"], result["misses"], result["false_alarms"], result["kwer"]
        (1, 1, 0, 1.0)
    """
    options = {"level": level, "remove_fillers": remove_fillers, "fold_erhua": fold_erhua}
    check_level(**options)
    check_mode(mode)
    if isinstance(keywords, str | Path):
        keywords = read_keywords(keywords)
    finder = KeywordFinder(keywords, **options)
    ids, predictions, references, num_missing = paired(predictions, references, ids)

    by_keyword = {keyword: np.zeros(4, dtype=np.int64) for keyword in finder.groups}
    counts = np.zeros((3, len(ids)), dtype=np.int64)
    events: list[KeywordEvent] = []
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        reference = characters(normalize(reference, **options))
        hypothesis = characters(normalize(prediction, **options))
        spans, heard = finder.find(reference), finder.find(hypothesis)
        if not spans and not heard:
            continue
        for span in spans:
            by_keyword[span.keyword][0] += 1
        for span in heard:
            by_keyword[span.keyword][1] += 1
        if mode == "align":
            missed, false = _by_alignment(finder, reference, hypothesis, spans, heard)
            events += [KeywordEvent(row, "miss" if span in missed else "correct", span) for span in spans]
            events += [KeywordEvent(row, "false_alarm", span) for span in false]
            wrong = [Counter(span.keyword for span in some) for some in (missed, false)]
        else:
            said, found = (Counter(span.keyword for span in some) for some in (spans, heard))
            wrong = [said - found, found - said]
        counts[:, row] = len(spans), wrong[0].total(), wrong[1].total()
        for kind, amounts in enumerate(wrong, 2):
            for keyword, amount in amounts.items():
                by_keyword[keyword][kind] += amount
    settings = {"mode": mode, **options}
    return KeywordCounts(ids, *counts, by_keyword, finder.groups, events, num_missing, settings)


def check_mode(mode: str) -> None:
    """Refuses an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"`mode` is {mode!r}; choose one of {', '.join(MODES)}.")


def _by_alignment(
    finder: KeywordFinder, reference: str, hypothesis: str, spans: list[Span], heard: list[Span]
) -> tuple[set[Span], list[Span]]:
    """The spans of the reference that are missed, and those of the hypothesis that are false alarms."""
    if reference == hypothesis:
        return set(), []
    if not spans:
        return set(), heard
    reference, compared = finder.without_aliases(reference, spans)
    hypothesis, compared_heard = finder.without_aliases(hypothesis, heard)
    kept = spans_kept_whole(reference, hypothesis, compared, set(compared_heard))
    images = {Span(start, start + span.end - span.start, span.keyword) for span, start in kept.items()}
    missed = {span for span, there in zip(spans, compared, strict=True) if there not in kept}
    return missed, [span for span, there in zip(heard, compared_heard, strict=True) if there not in images]


def _scores(counts: np.ndarray) -> dict:
    said, heard, misses, false_alarms = (int(count) for count in counts)
    recall = (said - misses) / said if said else None
    precision = (heard - false_alarms) / heard if heard else None
    f1 = None
    if recall is not None and precision is not None:
        f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return {
        "num_keywords": said,
        "num_hypothesis_keywords": heard,
        "misses": misses,
        "false_alarms": false_alarms,
        "kwer_miss": misses / said if said else None,
        "accuracy": recall,
        "recall": recall,
        "precision": precision,
        "f1": f1,
    }
