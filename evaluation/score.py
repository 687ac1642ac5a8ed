"""
References x hypotheses -> rates with intervals, which system is better, and the report.

    python evaluation/score.py --hypotheses ours=hyp/nest.jsonl whisper=hyp/whisper.jsonl --references test.json \\
        --keywords keywords.txt --by speaker duration_s --output_dir scores/test
    python evaluation/score.py --hypotheses base=base.jsonl tuned=tuned.jsonl --output_dir scores/calls \\
        --retention base=base.general.jsonl tuned=tuned.general.jsonl

Hypotheses are files of transcribe.py, or JSON lines of `id` and `text`, or `id text` lines (.txt), as `name=path`.
Without `--references` the hypotheses' own `reference` counts. A path that `transcribe.py --domain` was given stands
for all of its conditions. `--retention` are the same systems on a set that training must not harm. References without
a hypothesis count as deletions and are listed; a hypothesis without a reference is an error.

`--output_dir` gets metrics.json, <system>/utterances.jsonl and report.html.
"""

import logging
import sys

import datasets

from nest_hf.parsing import error_line, parse_arguments
from nest_hf.scoring_run import ScoringArguments, score


def main() -> None:
    (args,) = parse_arguments(ScoringArguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    datasets.disable_progress_bars()
    score(args)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
