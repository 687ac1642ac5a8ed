"""CER, MER, WER and KWER as metrics of the `evaluate` library."""

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import evaluate

from .error_rates import ErrorCounts, Texts, character_errors, mixed_errors, paired, word_errors, word_segmenter
from .keyword_errors import KeywordCounts, check_mode, keyword_errors
from .keywords import Keyword, KeywordFinder, read_keywords
from .text import check_level

_INPUTS = """
Args:
    predictions, references: two lists of texts, or two dicts of texts by id. By id, a reference without a prediction
        counts as deletions, and a prediction without a reference is an error.
"""
_SURROGATE = re.compile("[\ud800-\udfff]")
_EVALUATE_OPTIONS = set(inspect.signature(evaluate.EvaluationModule.__init__).parameters) - {"self", "seed", "kwargs"}


class _TextMetric(evaluate.Metric):
    """What the metrics share: two columns of text, also by id, and settings that every result records."""

    def __init__(
        self,
        level: str = "zh",
        *,
        remove_fillers: bool = False,
        fold_erhua: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        **evaluate_options,
    ):
        self.normalizer = {"level": level, "remove_fillers": remove_fillers, "fold_erhua": fold_erhua}
        check_level(**self.normalizer)
        for name in evaluate_options.keys() - _EVALUATE_OPTIONS:  # which the library would ignore
            raise ValueError(f"`{name}` is no option of {type(self).__name__}.")
        self.bootstrap = {"num_resamples": num_resamples, "seed": seed}
        self._num_missing = 0
        super().__init__(seed=seed, **evaluate_options)

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)),
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
        )

    def compute(self, *, predictions: Texts | None = None, references: Texts | None = None) -> dict | None:
        """Scores these texts together with those that were added before; `None` in all processes but the first."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        num_missing, self._num_missing = self._num_missing, 0
        result = self._compute(predictions=[], references=[]) if self.writer is None else super().compute()
        return result and {**result, "num_missing": num_missing}

    def add_batch(self, *, predictions: Texts, references: Texts) -> None:
        """Adds a batch of texts."""
        ids, predictions, references, num_missing = paired(predictions, references)
        for name, texts in (("predictions", predictions), ("references", references)):
            for key, text in zip(ids, texts, strict=True):
                if _SURROGATE.search(text):
                    raise ValueError(f"`{name}`: {key!r} is {text!r}, which UTF-8 cannot store; read the file anew.")
        if references:
            super().add_batch(predictions=predictions, references=references)
        self._num_missing += num_missing

    def add(self, *, prediction: str, reference: str) -> None:
        """Adds one text."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        return self._count(predictions, references).result(**self.bootstrap)

    def _count(self, predictions: Texts, references: Texts) -> ErrorCounts | KeywordCounts:
        raise NotImplementedError


class CharacterErrorRate(_TextMetric):
    """
    Character error rate: substitutions, deletions and insertions of a minimal alignment over the characters of the
    references. Spaces are not characters.

    Args:
        level (`str`, *optional*, defaults to `"zh"`): `"raw"`, `"basic"` or `"zh"`, see [`~text.normalize`].
        remove_fillers, fold_erhua (`bool`, *optional*, defaults to `False`): See [`~text.normalize`].
        num_resamples (`int`, *optional*, defaults to 1000): Bootstrap resamples of the 95 % interval.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.
        evaluate_options: Passed on to `evaluate.Metric`, such as `keep_in_memory` or `experiment_id`.

    The result is that of [`~error_rates.ErrorCounts.result`]: `cer`, `cer_macro`, `cer_interval`, the counts and the
    settings.

    Example:
        >>> result = CharacterErrorRate().compute(predictions=["手机号138"], references=["手机号一三八"])
        >>> result["cer"], result["num_tokens"], result["level"]
        (0.0, 6, 'zh')
    """

    def _count(self, predictions: Texts, references: Texts) -> ErrorCounts:
        return character_errors(predictions, references, **self.normalizer)


class MixedErrorRate(_TextMetric):
    """
    Mixed error rate of Chinese-English text: each Han or kana character is a token, and so is each run of other
    letters and digits (see [`~error_rates.mixed_tokens`]). The rate is `mer`; the arguments are those of
    [`CharacterErrorRate`].

    Example:
        >>> result = MixedErrorRate().compute(predictions=["用IPHONE打"], references=["用 iPhone 打"])
        >>> result["mer"], result["num_tokens"]
        (0.0, 3)
    """

    def _count(self, predictions: Texts, references: Texts) -> ErrorCounts:
        return mixed_errors(predictions, references, **self.normalizer)


class WordErrorRate(_TextMetric):
    """
    Word error rate. Words stand between spaces; text with Han characters is refused unless there is a segmenter. The
    rate is `wer`.

    Args:
        level (`str`, *optional*, defaults to `"zh"`): See [`CharacterErrorRate`], also for the other arguments.
        segmenter (`"jieba"` or a function from a text to its words, *optional*): What finds the words.

    Example:
        >>> WordErrorRate().compute(predictions=["hello word"], references=["Hello, world!"])["wer"]
        0.5
    """

    def __init__(self, level: str = "zh", *, segmenter: str | Callable[[str], Iterable[str]] | None = None, **options):
        word_segmenter(segmenter)
        self.segmenter = segmenter
        super().__init__(level, **options)

    def _count(self, predictions: Texts, references: Texts) -> ErrorCounts:
        return word_errors(predictions, references, segmenter=self.segmenter, **self.normalizer)


class KeywordErrorRate(_TextMetric):
    """
    Keyword error rate: missed keywords and false alarms over the keywords of the references (see
    [`~keyword_errors.keyword_errors`]).

    Args:
        keywords (a path, or an iterable of `str` or [`~keywords.Keyword`]): See [`~keywords.read_keywords`] for files.
        mode (`str`, *optional*, defaults to `"align"`): `"align"`, or `"count"` and `"legacy"` to compare with others.
        level (`str`, *optional*, defaults to `"zh"`): See [`CharacterErrorRate`], also for the other arguments.

    The result is that of [`~keyword_errors.KeywordCounts.result`]: `kwer`, `kwer_interval`, `num_keywords`, `misses`,
    `false_alarms`, `kwer_miss`, accuracy, recall, precision and F1, the tables `by_keyword` and `by_group`, and the
    settings.

    Example:
        >>> metric = KeywordErrorRate(keywords=["办理", "办理业务"])
        >>> result = metric.compute(predictions=["我要办业务"], references=["我要办理业务"])
        >>> result["kwer"], result["misses"], result["false_alarms"], result["num_keywords"]
        (1.0, 1, 0, 1)
    """

    def __init__(
        self, keywords: str | Path | Iterable[str | Keyword], *, mode: str = "align", level: str = "zh", **options
    ):
        check_mode(mode)
        self.keywords = read_keywords(keywords) if isinstance(keywords, str | Path) else list(keywords or ())
        self.mode = mode
        super().__init__(level, **options)
        KeywordFinder(self.keywords, **self.normalizer)  # a bad list fails here rather than after the texts

    def _count(self, predictions: Texts, references: Texts) -> KeywordCounts:
        return keyword_errors(predictions, references, self.keywords, mode=self.mode, **self.normalizer)
