"""Systems side by side: the hypotheses of each against the same references; rates, tables, rows per utterance."""

from dataclasses import dataclass, field

from .keyword_errors import KeywordCounts


@dataclass
class System:
    """
    One system on one test set, scored.

    Args:
        name (`str`): What to call it.
        rows (`list[dict]`): One per reference, in the order of the references: `id`, `reference` and `hypothesis` as
            they were given, before normalising, `errors` and `num_tokens` of the character error rate, `missing`
            where there was no hypothesis, `audio` (a path or None), and whatever else is known: `duration_s`,
            `speaker`, `domain`, `snr_db`, `channel`.
        cer, mer (`dict`): As [`~error_rates.ErrorCounts.result`] has them.
        wer (`dict`, *optional*): The same; None where words cannot be told apart without a segmenter.
        kwer (`dict`, *optional*): As [`~keyword_errors.KeywordCounts.result`] has it; None without keywords.
        keywords ([`~keyword_errors.KeywordCounts`], *optional*): Whose `events` name the utterances behind the table.
        settings (`dict`): `normalizer` (level and options) and `decoding` (from the `.meta.json` of the hypotheses).
    """

    name: str
    rows: list[dict]
    cer: dict
    mer: dict
    wer: dict | None = None
    kwer: dict | None = None
    keywords: KeywordCounts | None = None
    settings: dict = field(default_factory=dict)


__all__ = ["System"]
