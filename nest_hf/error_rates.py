"""CER, MER and WER as counts per utterance: what rates, intervals, comparisons and reports are made of."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import regex

from .alignment import edit_counts
from .bootstrap import bootstrap_interval
from .text import check_level, normalize

Texts = Mapping[str, str] | Sequence[str]

_HAN = regex.compile(r"\p{Han}")
_KANA = r"\p{Hiragana}\p{Katakana}ー"  # the long vowel mark is of both scripts
_MIXED_TOKEN = regex.compile(
    rf"[\p{{Han}}{_KANA}]|(?:[\p{{L}}\p{{M}}\p{{N}}'%--[\p{{Han}}{_KANA}]]|(?<=\d)\.(?=\d))+", regex.V1
)


@dataclass
class ErrorCounts:
    """
    The errors of every utterance.

    Args:
        name (`str`): What the rate is called: `"cer"`, `"mer"` or `"wer"`.
        ids (`list`): Of the utterances; their positions where none were given.
        substitutions, deletions, insertions (`np.ndarray` of shape `(utterances,)`): Of one minimal alignment each.
        num_tokens (`np.ndarray` of shape `(utterances,)`): Reference tokens.
        num_missing (`int`): References without a hypothesis; all of their tokens are deletions.
        settings (`dict`): Normaliser level and options, recorded in every result.
    """

    name: str
    ids: list
    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray
    num_tokens: np.ndarray
    num_missing: int = 0
    settings: dict = field(default_factory=dict)

    @property
    def errors(self) -> np.ndarray:
        """(utterances,) substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    def result(self, *, num_resamples: int = 1000, seed: int = 0) -> dict:
        """
        The corpus rate under `name`, the mean of the utterances' rates under `<name>_macro` (of those with a reference
        that is not empty), the 95 % bootstrap interval of the corpus rate under `<name>_interval`, the counts, and the
        settings. The rates are `None` where the references hold no token.
        """
        errors, total = self.errors, int(self.num_tokens.sum())
        spoken = self.num_tokens > 0
        interval = bootstrap_interval(errors, self.num_tokens, num_resamples=num_resamples, seed=seed)
        return {
            self.name: int(errors.sum()) / total if total else None,
            f"{self.name}_macro": float(np.mean(errors[spoken] / self.num_tokens[spoken])) if total else None,
            f"{self.name}_interval": interval and list(interval),
            "errors": int(errors.sum()),
            "substitutions": int(self.substitutions.sum()),
            "deletions": int(self.deletions.sum()),
            "insertions": int(self.insertions.sum()),
            "num_tokens": total,
            "num_utterances": len(self.ids),
            "num_missing": self.num_missing,
            **self.settings,
        }


def character_errors(predictions: Texts, references: Texts, *, ids: Iterable | None = None, **options) -> ErrorCounts:
    """
    Counts character errors; spaces are not characters.

    Args:
        predictions, references (`Sequence[str]` or `Mapping[str, str]`):
            Two sequences of one length, or texts by id. By id, a reference without a prediction counts as deletions.
        ids (`Iterable`, *optional*): Names of the rows of two sequences.
        options: `level`, `remove_fillers` and `fold_erhua`, see [`~text.normalize`].

    Raises:
        ValueError: for a prediction without a reference, sequences of different lengths, and what is not a string.

    Example:
        >>> counts = character_errors({"a": "我要办业务"}, {"a": "我要办理业务", "b": "好的"})
        >>> counts.deletions, counts.num_tokens, counts.num_missing
        (array([1, 2]), array([6, 2]), 1)
    """
    return _counts("cer", characters, predictions, references, ids, **options)


def mixed_errors(predictions: Texts, references: Texts, *, ids: Iterable | None = None, **options) -> ErrorCounts:
    """
    Counts errors of mixed tokens, see [`mixed_tokens`]. The arguments are those of [`character_errors`].

    Example:
        >>> int(mixed_errors(["用IPHONE打"], ["用 iPhone 打"]).errors.sum())
        0
    """
    return _counts("mer", mixed_tokens, predictions, references, ids, **options)


def word_errors(
    predictions: Texts,
    references: Texts,
    *,
    segmenter: str | Callable[[str], Sequence[str]] | None = None,
    ids: Iterable | None = None,
    **options,
) -> ErrorCounts:
    """
    Counts word errors. Words stand between spaces; text with Han characters needs a segmenter and is refused without.

    Args:
        predictions, references, ids, options: See [`character_errors`].
        segmenter (`str` or a function from a text to its words, *optional*): `"jieba"` (an extra), or your own.
    """
    segment = word_segmenter(segmenter)
    name = segmenter if isinstance(segmenter, str | None) else getattr(segmenter, "__name__", type(segmenter).__name__)
    return _counts("wer", segment, predictions, references, ids, settings={"segmenter": name}, **options)


def characters(text: str) -> str:
    """The characters of a normalised text, without its spaces."""
    return "".join(text.split())


def mixed_tokens(text: str) -> list[str]:
    """
    The mixed tokens of a normalised text: each Han, Hiragana or Katakana character is one, and so is each run of other
    letters, digits, apostrophes, `%` and decimal points inside a number.

    >>> mixed_tokens("用iphone打 don't 3.5%々ガ")
    ['用', 'iphone', '打', "don't", '3.5%', '々', 'ガ']
    """
    return _MIXED_TOKEN.findall(text)


def word_segmenter(segmenter: str | Callable[[str], Sequence[str]] | None) -> Callable[[str], list[str]]:
    """The function from a normalised text to its words that [`word_errors`] uses."""
    if segmenter is None:
        return _words_between_spaces
    if segmenter == "jieba":
        try:
            import jieba
        except ImportError:
            raise ValueError("`segmenter` is 'jieba', which is not installed; run `pip install jieba`.") from None
        jieba.setLogLevel("WARNING")
        segmenter = jieba.lcut
    elif not callable(segmenter):
        raise ValueError(f"`segmenter` is {segmenter!r}; pass 'jieba', a function from a text to its words, or None.")
    return lambda text: [word for word in segmenter(text) if word.strip()]


def _words_between_spaces(text: str) -> list[str]:
    if _HAN.search(text):
        raise ValueError(f"{text!r} holds Han characters, which no spaces separate; pass segmenter='jieba'.")
    return text.split()


def paired(
    predictions: Texts, references: Texts, ids: Iterable | None = None
) -> tuple[list, list[str], list[str], int]:
    """
    Checks two sets of texts and brings them in one order.

    Returns:
        `tuple`: The ids, the predictions, the references, and how many references had no prediction (now empty).
    """
    by_id = [isinstance(texts, Mapping) for texts in (predictions, references)]
    if any(by_id):
        if not all(by_id) or ids is not None:
            raise ValueError(
                "`predictions` and `references` must both be texts by id, without `ids`, or both sequences."
            )
        extra = [key for key in predictions if key not in references]
        if extra:
            more = f" and {len(extra) - 1} more have" if len(extra) > 1 else " has"
            raise ValueError(f"`predictions`: {extra[0]!r}{more} no reference; remove what is not in the test set.")
        ids = list(references)
        num_missing = len(references) - len(predictions)
        predictions = [predictions.get(key, "") for key in ids]
        references = list(references.values())
    else:
        predictions, references = _listed("predictions", predictions), _listed("references", references)
        num_missing = 0
        if len(predictions) != len(references):
            raise ValueError(
                f"`predictions` has {len(predictions)} texts but `references` has {len(references)}; pass as many, "
                "or both by id."
            )
        ids = list(range(len(references)) if ids is None else ids)
        if len(ids) != len(references):
            raise ValueError(f"`ids` has {len(ids)} entries for {len(references)} texts; pass one for each.")
        if len(set(ids)) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise ValueError(f"`ids` holds {twice!r} twice; an id names one utterance.")
    for name, texts in (("predictions", predictions), ("references", references)):
        for key, text in zip(ids, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"`{name}`: {key!r} is {text!r} ({type(text).__name__}); pass a string.")
    return ids, predictions, references, num_missing


def _listed(name: str, texts: Iterable[str]) -> list:
    if texts is None or isinstance(texts, str):
        raise ValueError(f"`{name}` is {texts!r}; pass a list of strings or a dict of strings by id.")
    return list(texts)


def _counts(
    name: str,
    tokenize: Callable[[str], Sequence],
    predictions: Texts,
    references: Texts,
    ids: Iterable | None,
    *,
    level: str = "zh",
    remove_fillers: bool = False,
    fold_erhua: bool = False,
    settings: dict | None = None,
) -> ErrorCounts:
    options = {"remove_fillers": remove_fillers, "fold_erhua": fold_erhua}
    check_level(level, **options)
    ids, predictions, references, num_missing = paired(predictions, references, ids)

    def tokens(key, text: str) -> Sequence:
        try:
            return tokenize(normalize(text, level, **options))
        except ValueError as error:
            raise ValueError(f"utterance {key!r}: {error}") from error

    counts = np.zeros((4, len(ids)), dtype=np.int64)
    for row, (key, prediction, reference) in enumerate(zip(ids, predictions, references, strict=True)):
        reference = tokens(key, reference)
        counts[:3, row] = edit_counts(reference, tokens(key, prediction))
        counts[3, row] = len(reference)
    return ErrorCounts(name, ids, *counts, num_missing, {"level": level, **options, **(settings or {})})
