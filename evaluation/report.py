"""
A report to look at, as one HTML file that needs no network: of scores, or of training runs.

    python evaluation/report.py --scores scores/test --output report.html
    python evaluation/report.py --scores scores/test --output report.html --audio link --num_audio 1000
    python evaluation/report.py --runs runs/nest_large runs/nest_large_clean runs/stages --output curves.html

`--scores` is the output folder of score.py: figures with intervals, CER by condition, confusions, keywords, and every
utterance with its alignment. `--audio embed` puts the recordings with most errors into the file, `link` links to all
recordings; `--num_audio` says how many are embedded, or have a spectrogram.

`--runs` are output folders of pretrain.py or finetune.py, finished or not, or of run_stages.py: loss, error rates,
learning rate, use of the codebook. The last validations are also printed, as a Markdown table.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from nest_hf.parsing import error_line, parse_arguments
from nest_hf.report import build_report, build_runs_report, read_scores
from nest_hf.report.runs import last_validations, read_runs


@dataclass
class ReportArguments:
    """What to show and where to write it."""

    scores: str | None = HfArg(default=None, help="Output folder of score.py.")
    runs: list[str] | None = HfArg(default=None, help="Output folders of training runs, or of their stages.")
    output: str | None = HfArg(default=None, help="The HTML file to write.")
    title: str | None = HfArg(default=None, help="Of the report; the name of the folder by default.")
    audio: str | None = HfArg(default=None, help="Of a report on scores: embed (default), link or none.")
    num_audio: int | None = HfArg(default=None, help="Recordings with sound or spectrogram, the worst; default 200.")

    def __post_init__(self):
        if bool(self.scores) == bool(self.runs):
            raise ValueError("give either --scores DIR or --runs DIR ...")
        if not self.output:
            raise ValueError("`output` is missing; give --output report.html.")
        for name in ("audio", "num_audio"):
            if self.runs and getattr(self, name) is not None:
                raise ValueError(f"`{name}` has no effect on a report of training runs; leave it out.")


def main() -> None:
    (args,) = parse_arguments(ReportArguments)
    if args.runs:
        header, rows = last_validations(read_runs(args.runs))
        print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
        for row in rows:
            print("| " + " | ".join("" if c is None else c if isinstance(c, str) else f"{c:.4g}" for c in row) + " |")
        print(
            build_runs_report(args.runs, args.output, title=args.title or ", ".join(Path(r).name for r in args.runs))
        )
        return
    scores = read_scores(args.scores)
    options = {name: getattr(args, name) for name in ("audio", "num_audio") if getattr(args, name) is not None}
    print(
        build_report(
            scores.systems, args.output, title=args.title or Path(args.scores).resolve().name,
            comparisons=scores.comparisons, retention=scores.retention, **options,
        )
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
