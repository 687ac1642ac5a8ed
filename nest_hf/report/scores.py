"""The report on scores: rates, conditions, confusions, keywords, and every utterance with its audio."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from ..error_rates import characters
from ..scoring import RATES, System, compare
from ..text import normalize
from .clips import channel_of, clip_of, has_channel, link_to
from .columns import channel_steps, described, grouped
from .page import write_page

AUDIO = ("embed", "link", "none")
SCRIPTS = ("dom.js", "charts.js", "alignment.js", "utterances.js", "detail.js", "scores.js")
_BEFORE = "The recording as it was before the channel of this condition."
_LETTERS = {"equal": "=", "replace": "S", "delete": "D", "insert": "I"}


def build_report(
    systems: Sequence[System],
    path: str | os.PathLike,
    *,
    title: str = "scores",
    comparisons: Sequence[Mapping] | None = None,
    retention: Mapping | None = None,
    audio: str = "embed",
    num_audio: int = 200,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Path:
    """
    Writes the report of systems that were scored against the same references.

    Args:
        systems (`Sequence[System]`): Of one [`~scoring.Scorer`], or of [`read_scores`].
        path (`str` or `os.PathLike`): Of the HTML file.
        title (`str`, *optional*): Its heading.
        comparisons (`Sequence[Mapping]`, *optional*): Pairs of systems, see [`~scoring.compare`]; made of the counts
            of the systems where none are given.
        retention (`Mapping`, *optional*): As metrics.json has it: the systems' rates on the retention set.
        audio (`str`, *optional*, defaults to `"embed"`): `"embed"` puts recordings into the page, `"link"` links to
            all of them where they are, `"none"` leaves them out.
        num_audio (`int`, *optional*, defaults to 200): How many recordings are embedded, and have a spectrogram: those
            with most errors over all systems.
        num_resamples, seed: Of the intervals, see [`~bootstrap.bootstrap_interval`].

    Returns:
        `Path` of the report.
    """
    if audio not in AUDIO:
        raise ValueError(f"`audio` is {audio!r}; choose one of {', '.join(AUDIO)}.")
    if num_audio < 0:
        raise ValueError(f"`num_audio` is {num_audio}; give 0 or more.")
    if not systems:
        raise ValueError("`systems` is empty; give at least one.")
    ids = [row["id"] for row in systems[0].rows]
    for system in systems[1:]:
        if [row["id"] for row in system.rows] != ids:
            raise ValueError(f"{system.name} has other utterances than {systems[0].name}; score both together.")
    bootstrap = {"num_resamples": num_resamples, "seed": seed}
    if comparisons is None:
        comparisons = [found for rate in RATES for found in compare(systems, rate, **bootstrap)]
    facts = {system.name: [described(row) for row in system.rows] for system in systems}
    first = facts[systems[0].name]
    new_facts = [True, *(facts[system.name] != first for system in systems[1:])]
    references = _normal(systems[0], "reference")
    recordings = _recordings(systems)
    worst = [] if audio == "none" else _worst(systems, recordings)[:num_audio]
    heard, clips = _clips(systems, recordings, worst, embed=audio == "embed")
    path = Path(path)
    data = {
        "title": title,
        "audio": audio,
        "systems": [_summary(system) for system in systems],
        "comparisons": list(comparisons),
        "retention": retention and _retention(retention),
        "columns": grouped({system.name: system.rows for system in systems}, facts, **bootstrap),
        "utterances": {
            "id": ids,
            "raw": [row["reference"] for row in systems[0].rows],
            "reference": references,
            "link": [link_to(row, path) if row.get("audio") else None for row in recordings]
            if audio == "link"
            else None,
        },
        "hypotheses": [
            _hypotheses(system, references, facts[system.name] if is_new else None)
            for system, is_new in zip(systems, new_facts, strict=True)
        ],
        "clips": worst,
        "heard": heard,
    }
    return write_page(path, title=title, data=data, scripts=SCRIPTS, attachments=clips)


def _recordings(systems: Sequence[System]) -> list[dict]:
    """The row of each utterance that knows its audio; one without a hypothesis may not."""
    return [
        next((row for row in rows if row.get("audio")), rows[0])
        for rows in zip(*(s.rows for s in systems), strict=True)
    ]


def _worst(systems: Sequence[System], recordings: Sequence[Mapping]) -> list[int]:
    """Utterances with audio, those with most errors over all systems first."""
    errors = np.sum([[row["errors"] for row in system.rows] for system in systems], axis=0)
    return [place for place in np.argsort(-errors, kind="stable").tolist() if recordings[place].get("audio")]


def _clips(
    systems: Sequence[System], recordings: Sequence[Mapping], places: Sequence[int], *, embed: bool
) -> tuple[list[dict], dict[str, dict]]:
    """
    The clips by name, and by system what it heard: the number n of its condition, whose clip of utterance 7 is
    `clip-7-n`, and a note where it heard something else. What is linked to is the recording itself.
    """
    made: dict[str, tuple[int, str | None]] = {}
    clips: dict[str, dict] = {}
    heard = []
    for system in systems:
        is_changed = has_channel(system.settings)
        key = (
            str([system.settings.get(name) for name in ("condition", "seed", "data")]) if is_changed and embed else ""
        )
        if key not in made:
            channel, note = None, None
            if key and places:
                try:
                    channel = channel_of(system.settings)
                except (ValueError, OSError) as error:
                    note = f"{_BEFORE} That cannot be heard, since the data are not there: {error}"
            made[key] = (len(made), note)
            for place in places:
                row = recordings[place] if channel is None else system.rows[place]
                clips[f"clip-{place}-{made[key][0]}"] = clip_of(row, embed=embed, channel=channel)
        number, note = made[key]
        heard.append({"clip": number, "note": _BEFORE if is_changed and not embed else note})
    return heard, clips


def _summary(system: System) -> dict:
    """What the page says of a system as a whole."""
    rates = {}
    for rate in RATES:
        result = getattr(system, rate)
        if result and result.get(rate) is not None:
            low, high = result.get(f"{rate}_interval") or (None, None)
            rates[rate] = {"value": result[rate], "low": low, "high": high}
    kwer = system.kwer or {}
    return {
        "name": system.name,
        "rates": rates,
        "errors": {key: system.cer[key] for key in ("substitutions", "deletions", "insertions", "num_tokens")},
        "missing": len(system.missing),
        "keywords": [{"keyword": keyword, **row} for keyword, row in kwer.get("by_keyword", {}).items()],
        "groups": [{"keyword": group, **row} for group, row in kwer.get("by_group", {}).items()],
        "settings": _flat(system.settings),
    }


def _retention(retention: Mapping) -> dict:
    rates = {}
    for name, results in retention["systems"].items():
        low, high = results["cer"].get("cer_interval") or (None, None)
        rates[name] = {"value": results["cer"]["cer"], "low": low, "high": high}
    return {"cer": rates, "comparisons": [c for c in retention.get("comparisons", ()) if c["rate"] == "cer"]}


def _flat(settings: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested settings as lines of a table."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            found[prefix + str(key)] = str(value)
    return found


def _hypotheses(system: System, references: Sequence[str], facts: Sequence[Mapping] | None) -> dict:
    """Of each utterance what a system made of it, and what is known of it there; None where the first system says the
    same."""
    rows = system.rows
    texts = _normal(system, "hypothesis")
    return {
        "raw": [None if row.get("missing") else row["hypothesis"] for row in rows],
        "text": texts,
        "edits": [edits(*pair) for pair in zip(references, texts, strict=True)],
        "keywords": [row.get("keyword_events", ()) for row in rows],
        "facts": facts,
        "steps": None if facts is None else [[_step(step) for step in channel_steps(row)] for row in rows],
        "passes": [
            {name: row[name] for name in ("ctc_text", "lm_text") if isinstance(row.get(name), str)} for row in rows
        ],
    }


def _normal(system: System, column: str) -> list[str]:
    """The characters of a column that are scored."""
    options = system.settings["normalizer"]
    return [characters(normalize(row[column], **options)) for row in system.rows]


def _step(step: Mapping) -> str:
    """A step of the channel in a line."""
    values = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in step.items()
        if key != "step" and isinstance(value, str | int | float)
    ]
    return " ".join([step["step"], *([f"({', '.join(values)})"] if values else [])])


def edits(reference: str, hypothesis: str) -> str:
    """
    One minimal alignment, as runs of equal (=), substituted, deleted and inserted characters.

    >>> edits("我要办理业务", "我要办业务吧")
    '3=1D2=1I'
    """
    runs = []
    for block in Levenshtein.opcodes(reference, hypothesis):
        length = max(block.src_end - block.src_start, block.dest_end - block.dest_start)
        runs.append(f"{length}{_LETTERS[block.tag]}")
    return "".join(runs)


__all__ = ["build_report", "edits"]
