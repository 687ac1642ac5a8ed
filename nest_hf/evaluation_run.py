"""The stage `evaluate` of a recipe: several models on several sets, decoded, scored side by side, one table."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers.hf_argparser import HfArg

from .data.audio_encoding import write_whole
from .hypotheses import read_hypotheses
from .keywords import read_keywords
from .listening import heard_without_speech, swapped_cer
from .recognisers import open_recogniser
from .scoring import Scorer
from .scoring_run import ScoringArguments, score
from .text_table import percent, text_table
from .transcription_run import DTYPES, TranscriptionArguments, transcribe

logger = logging.getLogger(__name__)

RATES = ("cer", "mer", "wer", "kwer")
HEADS = ("lm", "ctc")


@dataclass
class EvaluationArguments:
    """Which models, on which sets."""

    systems: dict | None = HfArg(default=None, help="Name -> model: a folder, Hub id or stage pointer.")
    data: dict | None = HfArg(default=None, help="Name -> set: the first is the target, the second the retention set.")
    output_dir: str | None = HfArg(default=None, help="Folder for hypotheses, rates and the report.")
    keywords: str | None = HfArg(default=None, help="A keyword file.")
    segmenter: str | None = HfArg(default=None, help="`jieba`, for the word error rate of Chinese.")
    level: str = HfArg(default="zh", help="Of the normaliser: raw, basic or zh.")
    by: list[str] | None = HfArg(default=None, help="Tables by columns: speaker, duration_s, snr_db ...")
    num_beams: int = HfArg(default=1, help="Beams of the language model.")
    ctc_beam_size: int = HfArg(default=1, help="Prefixes of the CTC beam search.")
    ctc_weight: float = HfArg(
        default=0.0, help="Of the CTC head's probability, where both heads choose among their texts."
    )
    hotword_bonus: float = HfArg(default=1.5, help="Nats for each character of a hotword, in that choice.")
    hotwords: str | None = HfArg(default=None, help="A file of words that may be said.")
    hotwords_in_prompt: bool = HfArg(
        default=True, help="Whether prompts name hotwords that may have been said; false for a model that knows none."
    )
    listening: bool = HfArg(
        default=False,
        help="Also the CER with recordings swapped for others as long, and what is heard in silence and noise.",
    )
    language: str | None = HfArg(default=None, help="Of the speech.")
    batch_duration_s: float = HfArg(default=160.0, help="Seconds of a batch.")
    dtype: str = HfArg(default="float32", help="Of the weights: float32, float16 or bfloat16.")
    num_threads: int | None = HfArg(default=None, help="CPU threads.")
    use_cpu: bool = HfArg(default=False, help="Decode on the CPU, also where there is a GPU.")

    def __post_init__(self):
        for name in ("systems", "data"):
            if not getattr(self, name) or not isinstance(getattr(self, name), dict):
                raise ValueError(f"`{name}` of `evaluate` is missing: give a mapping from names.")
        if len(self.data) > 2:
            raise ValueError(f"`data` of `evaluate` has {len(self.data)} sets; give the target and one retention set.")


def evaluate(args: EvaluationArguments) -> None:
    """
    Decodes every set by every system, scores them and prints two tables: CER, MER, WER, KWER and the CER on the
    retention set; and the rates of language model and CTC head by themselves. All of it goes to `summary.json`,
    `scores/` and `hypotheses/`.
    """
    state = PartialState()
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    out = Path(args.output_dir)

    # 1. decode
    hypotheses = {
        name: {system: out / "hypotheses" / name / f"{system}.jsonl" for system in args.systems} for name in args.data
    }
    common = ("num_beams", "ctc_beam_size", "ctc_weight", "hotword_bonus", "hotwords", "language", "batch_duration_s")
    common += ("hotwords_in_prompt", "dtype", "num_threads")
    for name, source in args.data.items():
        for system, model in args.systems.items():
            options = {option: getattr(args, option) for option in common}
            data = [source] if isinstance(source, str) else source
            output = str(hypotheses[name][system])
            transcribe(TranscriptionArguments(model=model, data=data, output=output, device=device, **options), state)
    if not state.is_main_process:
        return

    # 2. score
    target, *others = args.data
    options = {option: getattr(args, option) for option in ("keywords", "segmenter", "level", "by")}
    named = {name: [f"{system}={path}" for system, path in files.items()] for name, files in hypotheses.items()}
    retention = named[others[0]] if others else None
    metrics = score(
        ScoringArguments(hypotheses=named[target], retention=retention, output_dir=str(out / "scores"), **options)
    )

    # 3. each head by itself, and what is asked beside
    rows = read_hypotheses(next(iter(hypotheses[target].values())))
    scorer = Scorer(
        {row["id"]: row["reference"] for row in rows if row.get("reference")},
        keywords=read_keywords(args.keywords) if args.keywords else None,
        level=args.level,
        segmenter=args.segmenter,
    )
    summary = {}
    for system in args.systems:
        found = metrics["systems"][system]
        rates = {rate: _rate(found[rate], rate) for rate in RATES}
        rates |= head_rates(hypotheses[target][system], scorer)
        if others:
            rates["retention_cer"] = _rate(metrics["retention"]["systems"][system]["cer"], "cer")
        if args.listening:
            swapped, apart_s = swapped_cer(read_hypotheses(hypotheses[target][system]), level=args.level)
            without_speech = heard_without_speech(
                open_recogniser(args.systems[system], dtype=DTYPES[args.dtype], device=device)
            )
            rates["swapped_cer"] = {"value": swapped, "interval": None, "apart_s": apart_s}
            for kind, texts in without_speech.items():
                rates[f"texts_in_{kind}"] = f"{sum(map(bool, texts))} of {len(texts)}"
        summary[system] = rates

    # 4. tables
    print(f"\n{summary_table(summary, target, others)}\n")
    if any(f"{head}_cer" in rates for head in HEADS for rates in summary.values()):
        print(f"{heads_table(summary, target)}\n")
    write_whole(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1).encode())
    print(f"{out / 'summary.json'}, {out / 'scores'}")


def _rate(result: dict | None, rate: str) -> dict | None:
    """Value and 95 % interval."""
    if not result or result.get(rate) is None:
        return None
    return {"value": result[rate], "interval": result.get(f"{rate}_interval")}


def head_rates(path: Path, scorer: Scorer) -> dict[str, dict]:
    """`lm_cer`, `ctc_kwer` ...: rates of the texts that each head wrote by itself of the same audio."""
    rates = {}
    for head in HEADS:
        rows = [row for row in read_hypotheses(path) if row["id"] in scorer.references]
        if any(row.get(f"{head}_text") is not None for row in rows):
            system = scorer(head, [{"id": row["id"], "text": row.get(f"{head}_text") or ""} for row in rows])
            found = {rate: _rate(getattr(system, rate), rate) for rate in RATES}
            rates |= {f"{head}_{rate}": value for rate, value in found.items() if value is not None}
    return rates


def summary_table(summary: dict, target: str, others: list[str]) -> str:
    """The rates of each system in percent."""
    columns = {rate: rate.upper() for rate in RATES}
    if others:
        columns["retention_cer"] = f"CER {others[0]}"
    if any("swapped_cer" in rates for rates in summary.values()):
        columns |= {"swapped_cer": "CER swapped", "texts_in_silence": "texts in silence", "texts_in_noise": "in noise"}
    rows = [[system, *(_cell(rates.get(name)) for name in columns)] for system, rates in summary.items()]
    return text_table([f"{target}, %", *columns.values()], rows)


def heads_table(summary: dict, target: str) -> str:
    """The rates of each head by itself in percent."""
    names = [f"{head}_{rate}" for head in HEADS for rate in RATES]
    names = [name for name in names if any(name in rates for rates in summary.values())]
    rows = [[system, *(_cell(rates.get(name)) for name in names)] for system, rates in summary.items()]
    titles = [f"{rate.upper()} ({head.upper()})" for head, _, rate in (name.partition("_") for name in names)]
    return text_table([f"{target}, each head alone, %", *titles], rows)


def _cell(value: dict | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else percent(value["value"])


__all__ = ["EvaluationArguments", "evaluate", "summary_table"]
