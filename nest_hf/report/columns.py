"""What the utterances of a report are grouped by: columns of the data, and what the telephone channel drew."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..bootstrap import bootstrap_interval

TITLES = {
    "snr_db": "SNR, dB",
    "duration_s": "duration, s",
    "speaker": "speaker",
    "speaking_rate": "speaking rate, characters/s",
    "codec": "codec",
    "lost_percent": "lost packets, %",
    "babble_snr_db": "babble SNR, dB",
    "noise_snr_db": "noise SNR, dB",
    "level_dbov": "level, dBov",
    "domain": "domain",
}
EDGES = {
    "snr_db": [0, 5, 10, 15, 20, 25],
    "babble_snr_db": [0, 5, 10, 15, 20, 25],
    "noise_snr_db": [0, 5, 10, 15, 20, 25],
    "duration_s": [1, 2, 5, 10, 20],
    "speaking_rate": [2, 3, 4, 5, 6, 7, 8],
    "lost_percent": [0.5, 1, 2, 5, 10],
}
# of the rows, what describes the result and not the recording
NO_FACTS = {
    "id", "reference", "hypothesis", "errors", "num_tokens", "missing", "audio", "offset_s", "channel", "lm_text",
    "ctc_text", "text", "decisions", "hotwords", "characters", "words", "hit_max_new_tokens", "num_windows", "rtf",
    "keyword_events",
}  # fmt: skip
MAX_VALUES = 12  # of a column nobody knows, to be worth a chart
MAX_LABELS = 200  # those with most utterances; all others are one group


def channel_steps(row: Mapping) -> list[dict]:
    """The steps of a row's `channel` (a `ChannelDraw` as JSON); empty where there is none that can be read."""
    try:
        steps = json.loads(row["channel"])["steps"]
        return [step for step in steps if isinstance(step["step"], str)]
    except (KeyError, TypeError, ValueError):
        return []


def described(row: Mapping) -> dict:
    """
    The plain columns of a row, and what can be derived: the speaking rate, and the codec, share of lost packets and
    noise that its telephone channel drew.

    >>> described({"num_tokens": 12, "duration_s": 3.0, "speaker": "a", "errors": 1})
    {'duration_s': 3.0, 'speaker': 'a', 'speaking_rate': 4.0}
    """
    facts = {
        name: value
        for name, value in row.items()
        if name not in NO_FACTS and isinstance(value, str | int | float | bool)
    }
    duration = row.get("duration_s")
    if isinstance(duration, int | float) and duration > 0:
        facts["speaking_rate"] = row["num_tokens"] / duration
    for step in channel_steps(row):
        if "skipped" in step:
            continue
        if step["step"] == "codec":
            facts["codec"] = str(step.get("name"))
        elif step["step"] == "packet_loss" and "rate" in step:
            facts["lost_percent"] = 100 * step["rate"]
        elif step["step"] in ("babble", "noise") and "snr_db" in step:
            facts[f"{step['step']}_snr_db"] = step["snr_db"]
        elif step["step"] == "level" and "active_dbov" in step:
            facts["level_dbov"] = step["active_dbov"]
    return facts


def grouped(systems: Mapping[str, Sequence[Mapping]], facts: Mapping[str, Sequence[Mapping]], **bootstrap) -> list:
    """
    The character error rate by every column that is worth a chart.

    Args:
        systems (`Mapping[str, Sequence[Mapping]]`): The rows of each system, in one order.
        facts (`Mapping[str, Sequence[Mapping]]`): What [`described`] says of them.
        bootstrap: `num_resamples` and `seed`, see [`~bootstrap.bootstrap_interval`].

    Returns:
        `list[dict]`: Of each column `name`, `title`, `labels`, `ordered` (whether they are ranges of a number), `of`
        (by system, the label of each row as its position; -1 where the row has no value) and `rates` (by system, of
        each label `cer`, `low`, `high`, `errors`, `tokens`, `utterances`).
    """
    charts = []
    for name in _columns(facts.values()):
        values = {system: [row.get(name) for row in rows] for system, rows in facts.items()}
        labels, of, ordered = _labelled(values, EDGES.get(name))
        if len(labels) < 2:
            continue
        rates = {
            system: [
                _rate(rows, np.flatnonzero(np.asarray(of[system]) == label), **bootstrap)
                for label in range(len(labels))
            ]
            for system, rows in systems.items()
        }
        charts.append(
            {
                "name": name,
                "title": TITLES.get(name, name),
                "labels": labels,
                "ordered": ordered,
                "of": of,
                "rates": rates,
            }
        )
    return charts


def _columns(facts: Iterable[Sequence[Mapping]]) -> list[str]:
    """Those that are known, and others with few values, each in the order in which they come."""
    seen: dict[str, set] = {}
    for rows in facts:
        for row in rows:
            for name, value in row.items():
                values = seen.setdefault(name, set())
                if len(values) <= MAX_VALUES:
                    values.add(value)
    known = [name for name in TITLES if name in seen]
    return known + [name for name, values in seen.items() if name not in TITLES and 2 <= len(values) <= MAX_VALUES]


def _labelled(values: Mapping[str, list], edges: list | None) -> tuple[list[str], dict[str, list[int]], bool]:
    """Labels, and by system the position of the label of each row."""
    told = [value for column in values.values() for value in column if value is not None]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in told)
    if is_number and (edges or len(set(told)) > MAX_VALUES):
        if edges is None:
            edges = sorted({float(f"{edge:.2g}") for edge in np.quantile(told, [0.2, 0.4, 0.6, 0.8])})
        names = [f"below {edges[0]:g}", *(f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False))]
        names.append(f"{edges[-1]:g} and more")

        def label(value):
            return names[int(np.searchsorted(edges, value, side="right"))]

        order = names
    else:
        order = sorted(set(told)) if is_number else [text for text, _ in Counter(map(str, told)).most_common()]
        order = [str(value) for value in order]
        if len(order) > MAX_LABELS:
            order = [*order[:MAX_LABELS], "all others"]

        def label(value):
            return str(value) if str(value) in places else "all others"

    places = {text: place for place, text in enumerate(order)}
    of = {system: [-1 if v is None else places[label(v)] for v in column] for system, column in values.items()}
    used = sorted({place for column in of.values() for place in column} - {-1})
    renumbered = {-1: -1, **{place: number for number, place in enumerate(used)}}
    return (
        [order[place] for place in used],
        {system: [renumbered[place] for place in column] for system, column in of.items()},
        is_number,
    )


def _rate(rows: Sequence[Mapping], chosen: np.ndarray, **bootstrap) -> dict:
    errors = np.array([rows[row]["errors"] for row in chosen], dtype=np.int64)
    tokens = np.array([rows[row]["num_tokens"] for row in chosen], dtype=np.int64)
    total = int(tokens.sum())
    low, high = bootstrap_interval(errors, tokens, **bootstrap) if total else (None, None)
    return {
        "cer": int(errors.sum()) / total if total else None,
        "low": low,
        "high": high,
        "errors": int(errors.sum()),
        "tokens": total,
        "utterances": len(chosen),
    }


__all__ = ["channel_steps", "described", "grouped"]
