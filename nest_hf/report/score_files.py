"""What `evaluation/score.py` wrote, read again."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..scoring import System, folder_name


@dataclass
class Scores:
    """
    A folder of scores.

    Args:
        systems (`list[System]`): In their order; without the counts per utterance.
        comparisons (`list[dict]`): Every pair of systems, see [`~scoring.compare`].
        retention (`dict`, *optional*): The systems' rates on the retention set.
    """

    systems: list[System]
    comparisons: list[dict] = field(default_factory=list)
    retention: dict | None = None


def read_scores(folder: str | Path) -> Scores:
    """
    Reads metrics.json and <system>/utterances.jsonl of a folder.

    Raises:
        ValueError: for a folder that does not hold them, or whose utterances are not those of the metrics.
    """
    folder = Path(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(
            f"`scores` is {str(folder)!r}, which has no metrics.json; pass the output folder of score.py."
        )
    metrics = _json(path.read_text(encoding="utf-8"), str(path))
    systems = []
    for name, results in metrics["systems"].items():
        path = folder / folder_name(name) / "utterances.jsonl"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; run score.py again.")
        with open(path, encoding="utf-8") as file:
            rows = [_json(line, f"{path}: line {number}") for number, line in enumerate(file, 1)]
        due = results["cer"]["num_utterances"]
        if len(rows) != due:
            raise ValueError(f"{path} has {len(rows)} lines for {due} utterances; run score.py again.")
        rates = {rate: results[rate] for rate in ("cer", "mer", "wer", "kwer")}
        systems.append(System(name=name, rows=rows, settings=results["settings"], **rates))
    return Scores(systems, metrics.get("comparisons", []), metrics.get("retention"))


def _json(text: str, where: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}); run score.py again.") from error


__all__ = ["Scores", "read_scores"]
