"""Systems side by side: the hypotheses of each against the same references; rates, tables, rows per utterance."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import regex

from .bootstrap import paired_bootstrap
from .error_rates import ErrorCounts, character_errors, mixed_errors, word_errors
from .keyword_errors import KeywordCounts, keyword_errors
from .keywords import Keyword, KeywordFinder
from .text import check_level, normalize

_HAN = regex.compile(r"\p{Han}")
RATES = ("cer", "mer", "wer", "kwer")
# bounds of the tables, in the unit of the column; any other number is cut at its quartiles
EDGES = {"duration_s": [1, 2, 5, 10, 20], "snr_db": [0, 5, 10, 15, 20, 25]}
MAX_GROUPS = 30  # of a number, above which it is cut


@dataclass
class System:
    """
    One system on one test set, scored.

    Args:
        name (`str`): What to call it.
        rows (`list[dict]`): One per reference, in the order of the references: `id`, `reference` and `hypothesis` as
            they were given, before normalising, `errors` and `num_tokens` of the character error rate, `missing`
            where there was no hypothesis, `keyword_events` where keywords were said or heard (kind, keyword, start and
            end in the normalised characters), `audio` (a path or None), and whatever else is known: `duration_s`,
            `speaker`, `domain`, `snr_db`, `channel`.
        cer, mer (`dict`): As [`~error_rates.ErrorCounts.result`] has them.
        wer (`dict`, *optional*): The same; None where words cannot be told apart without a segmenter.
        kwer (`dict`, *optional*): As [`~keyword_errors.KeywordCounts.result`] has it; None without keywords.
        keywords ([`~keyword_errors.KeywordCounts`], *optional*): Whose `events` name the utterances behind the table.
        settings (`dict`): `normalizer` (level and options) and `decoding` (from the `.meta.json` of the hypotheses).
        counts (`dict[str, ErrorCounts | KeywordCounts]`): Per utterance, by rate: what comparisons are made of.
    """

    name: str
    rows: list[dict]
    cer: dict
    mer: dict
    wer: dict | None = None
    kwer: dict | None = None
    keywords: KeywordCounts | None = None
    settings: dict = field(default_factory=dict)
    counts: dict[str, ErrorCounts | KeywordCounts] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Ids without a hypothesis."""
        return [row["id"] for row in self.rows if row.get("missing")]


class Scorer:
    """
    Scores systems against one set of references, which are normalised once.

    Args:
        references (`Mapping[str, str]`): Texts by id.
        keywords (`Iterable[Keyword]`, *optional*): For the keyword error rate, see [`~keywords.read_keywords`].
        level, remove_fillers, fold_erhua: See [`~text.normalize`].
        segmenter (`str` or function, *optional*): See [`~error_rates.word_errors`]; without one, texts with Han
            characters have no word error rate.
        num_resamples, seed: See [`~bootstrap.bootstrap_interval`].

    Example:

    ```python
    scorer = Scorer({"a": "我要办理业务"}, keywords=[Keyword("办理")])
    system = scorer("ours", [{"id": "a", "text": "我要办业务"}])
    system.cer["cer"], system.kwer["kwer"]
    ```
    """

    def __init__(
        self,
        references: Mapping[str, str],
        *,
        keywords: Iterable[Keyword] | None = None,
        level: str = "zh",
        remove_fillers: bool = False,
        fold_erhua: bool = False,
        segmenter: str | Callable[[str], Sequence[str]] | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
    ):
        self.normalizer = {"level": level, "remove_fillers": remove_fillers, "fold_erhua": fold_erhua}
        check_level(**self.normalizer)
        if not references:
            raise ValueError("`references` holds no text; give at least one utterance.")
        self.references = references
        self.segmenter = segmenter
        self.bootstrap = {"num_resamples": num_resamples, "seed": seed}
        self.keywords = None if keywords is None else self._normalized_keywords(list(keywords))
        self._normal = {key: self._normalize(key, text) for key, text in references.items()}
        self._has_words = segmenter is not None or not any(map(_HAN.search, self._normal.values()))

    def __call__(
        self,
        name: str,
        hypotheses: Sequence[Mapping],
        *,
        metadata: Mapping | None = None,
        settings: dict | None = None,
    ) -> System:
        """
        Args:
            name (`str`): Of the system.
            hypotheses (`Sequence[Mapping]`): `id`, `text` and further columns, as [`read_hypotheses`] gives them.
            metadata (`Mapping[str, dict]`, *optional*): Further columns of the references, by id.
            settings (`dict`, *optional*): How the hypotheses were made.

        Raises:
            ValueError: for hypotheses of ids that the references do not have; they are named.
        """
        by_id = {row["id"]: row for row in hypotheses}
        extra = [key for key in by_id if key not in self.references]
        if extra:
            more = ", ..." if len(extra) > 5 else ""
            raise ValueError(
                f"{name}: {len(extra)} of {len(by_id)} hypotheses have no reference: {', '.join(extra[:5])}{more}; "
                "remove what is not in the test set, or give the right references."
            )
        texts = {key: self._normalize(key, row["text"]) for key, row in by_id.items()}
        counts: dict[str, ErrorCounts | KeywordCounts] = {
            "cer": character_errors(texts, self._normal, level="raw"),
            "mer": mixed_errors(texts, self._normal, level="raw"),
        }
        if self._has_words and (self.segmenter is not None or not any(map(_HAN.search, texts.values()))):
            counts["wer"] = word_errors(texts, self._normal, level="raw", segmenter=self.segmenter)
        if self.keywords is not None:
            counts["kwer"] = keyword_errors(texts, self._normal, self.keywords, level="raw")
        for count in counts.values():  # the texts were normalised before, by these
            count.settings = {**count.settings, **self.normalizer}
        results = {rate: count.result(**self.bootstrap) for rate, count in counts.items()}
        return System(
            name=name,
            rows=self._rows(by_id, counts, metadata or {}),
            cer=results["cer"],
            mer=results["mer"],
            wer=results.get("wer"),
            kwer=results.get("kwer"),
            keywords=counts.get("kwer"),
            settings={"normalizer": self.normalizer, **(settings or {})},
            counts=counts,
        )

    def _normalize(self, key: str, text: str) -> str:
        try:
            return normalize(text, **self.normalizer)
        except ValueError as error:
            raise ValueError(f"utterance {key!r}: {error}") from error

    def _normalized_keywords(self, keywords: list[Keyword]) -> list[Keyword]:
        KeywordFinder(keywords, **self.normalizer)  # says what is wrong with them in their own words

        def written(text: str) -> str:
            return "".join(normalize(text, **self.normalizer).split())

        return [
            dataclasses.replace(keyword, text=written(keyword.text), aliases=tuple(map(written, keyword.aliases)))
            for keyword in keywords
        ]

    def _rows(self, by_id: Mapping[str, Mapping], counts: dict, metadata: Mapping[str, dict]) -> list[dict]:
        rows = []
        errors, num_tokens = counts["cer"].errors.tolist(), counts["cer"].num_tokens.tolist()
        for (key, reference), wrong, number in zip(self.references.items(), errors, num_tokens, strict=True):
            found = by_id.get(key)
            row = {"id": key, "reference": reference, "hypothesis": found["text"] if found is not None else ""}
            row |= {"errors": wrong, "num_tokens": number}
            if found is None:
                row["missing"] = True
            known = {**metadata.get(key, {}), **(found or {})}
            row |= {name: value for name, value in known.items() if name not in row and name != "text"}
            row.setdefault("audio", None)
            rows.append(row)
        for index, kind, span in counts["kwer"].events if "kwer" in counts else ():
            rows[index].setdefault("keyword_events", []).append([kind, span.keyword, span.start, span.end])
        return rows


def compare(systems: Sequence[System], rate: str, *, num_resamples: int = 1000, seed: int = 0) -> list[dict]:
    """
    Every pair of systems by paired bootstrap.

    Args:
        systems (`Sequence[System]`): Of one [`Scorer`].
        rate (`str`): `"cer"`, `"mer"`, `"wer"` or `"kwer"`.

    Returns:
        `list[dict]`: `a`, `b`, `rate`, `difference` (of a minus b), `interval` and `p_value`.
    """
    comparisons = []
    with_rate = [system for system in systems if rate in system.counts]
    for index, a in enumerate(with_rate):
        for b in with_rate[index + 1 :]:
            found = paired_bootstrap(
                a.counts[rate].errors, b.counts[rate].errors, totals_of(a.counts[rate]),
                num_resamples=num_resamples, seed=seed,
            )  # fmt: skip
            if found is not None:
                facts = {**found._asdict(), "interval": list(found.interval)}
                comparisons.append({"rate": rate, "a": a.name, "b": b.name, **facts})
    return comparisons


def totals_of(counts: ErrorCounts | KeywordCounts) -> np.ndarray:
    """Reference tokens, or keywords, of every utterance (utterances,)."""
    return counts.num_keywords if isinstance(counts, KeywordCounts) else counts.num_tokens


def rates_by(system: System, column: str, *, num_resamples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """
    The character error rate of the utterances that share a value of a column, or of a range of numbers.

    Args:
        system ([`System`]): A scored one.
        column (`str`): Of its rows: `speaker`, `domain`, `duration_s`, `snr_db` ...; numbers are cut into ranges.

    Returns:
        `dict[str, dict]`: Of each value `cer`, `cer_interval`, `errors`, `num_tokens`, `num_utterances`.

    Raises:
        ValueError: if no row has the column.
    """
    values = [row.get(column) for row in system.rows]
    if all(value is None for value in values):
        known = sorted({name for row in system.rows[:1000] for name, value in row.items() if value is not None})
        raise ValueError(f"`by` names the column {column!r}, which no utterance has; there are {', '.join(known)}.")
    labels, order = _labels(values, EDGES.get(column))
    labels = np.array(labels, dtype=object)
    table, counts = {}, system.counts["cer"]
    for label in order:
        rows = np.flatnonzero(labels == label)
        part = ErrorCounts(
            "cer", rows.tolist(), counts.substitutions[rows], counts.deletions[rows], counts.insertions[rows],
            counts.num_tokens[rows],
        )  # fmt: skip
        result = part.result(num_resamples=num_resamples, seed=seed)
        table[label] = {key: result[key] for key in ("cer", "cer_interval", "errors", "num_tokens", "num_utterances")}
    return table


def _labels(values: list, edges: list | None) -> tuple[list[str], list[str]]:
    """The group of every value, and the groups in order."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    is_number = len(numbers) == sum(value is not None for value in values)
    if not is_number or (edges is None and len(set(numbers)) <= MAX_GROUPS):
        labels = ["unknown" if value is None else str(value) for value in values]
        order = sorted(set(numbers)) if is_number else sorted({*labels} - {"unknown"})
        return labels, list(map(str, order)) + ["unknown"] * ("unknown" in labels)
    edges = edges or sorted({float(f"{edge:.3g}") for edge in np.quantile(numbers, [0.25, 0.5, 0.75])})
    names = [f"below {edges[0]:g}", *(f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False))]
    names.append(f"{edges[-1]:g} and more")
    labels = ["unknown" if v is None else names[int(np.searchsorted(edges, v, side="right"))] for v in values]
    return labels, [name for name in [*names, "unknown"] if name in set(labels)]


def folder_name(system: str) -> str:
    """Folder of a system's utterances among the results: its name without what is not for paths."""
    return regex.sub(r"[^\w.=+-]+", "_", system)


__all__ = ["RATES", "Scorer", "System", "compare", "folder_name", "rates_by", "totals_of"]
