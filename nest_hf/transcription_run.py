"""Recordings -> hypotheses: what `evaluation/transcribe.py` does, and the stage `evaluate` of a recipe."""

import dataclasses
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.hf_argparser import HfArg

from .conditions import CONDITIONS, condition_channel
from .data import ChannelDraw, PretrainingDataset, TokenBudgetBatchSampler
from .decoding_settings import DecodingSettings
from .guards import GuardSettings
from .hypotheses import HypothesisFile
from .keywords import read_keywords
from .recognisers import has_language_model, model_identity, open_recogniser
from .recordings import Recordings, read_recordings
from .transcription import PROMPT_S

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OWN_COLUMNS = ("id", "audio", "offset", "duration", "text", "source")  # what the rows of the result name otherwise


@dataclass
class TranscriptionArguments:
    """Which recogniser hears what, and how."""

    model: str | None = HfArg(default=None, help="A folder, a Hub id or a stage pointer.")
    data: list[str] | None = HfArg(default=None, help="Recordings, named as in training; text is optional.")
    output: str | None = HfArg(default=None, help="The JSONL file of the hypotheses.")
    domain: list[str] | None = HfArg(
        default=None, help=f"Conditions to hear the data in: {', '.join(CONDITIONS)}; or channels (preset, YAML)."
    )
    revision: str | None = HfArg(default=None, help="Of a model on the Hub.")
    mode: str | None = HfArg(default=None, help="`lm` or `ctc`; by default the language model where there is one.")
    num_beams: int = HfArg(default=1, help="Beams of the language model.")
    ctc_beam_size: int = HfArg(default=1, help="Prefixes of the CTC beam search.")
    ctc_weight: float = HfArg(
        default=0.0, help="Of the CTC head's probability, where both heads choose among their texts."
    )
    hotword_bonus: float = HfArg(default=1.5, help="Nats for each character of a hotword, in that choice.")
    hotwords_in_prompt: bool = HfArg(
        default=True, help="Whether prompts name hotwords that may have been said; false for a model that knows none."
    )
    guard: bool = HfArg(default=True, help="Whether the CTC head may overrule the language model.")
    tokens_per_s: float = HfArg(default=12.0, help="Fastest speech, in tokens of the language model.")
    long_audio: str | None = HfArg(
        default=None,
        help="Recordings of more than max_window_s: cut at `pauses` or by `vad`, or in overlapping `windows`.",
    )
    max_window_s: float | None = HfArg(
        default=None,
        help="Longest audio in one piece; by default what the model was trained on where it says so, else 30 s.",
    )
    language: str | None = HfArg(default=None, help="Of the speech, for models that take one.")
    prompt: str | None = HfArg(default=None, help="Context, for models that take it.")
    itn: bool = HfArg(default=True, help="Numbers as written; false: as spoken.")
    hotwords: str | None = HfArg(default=None, help="A file of words that may be said, one per line.")
    timestamps: bool = HfArg(default=False, help="Times of characters and words; needs a CTC head.")
    batch_duration_s: float = HfArg(default=160.0, help="Seconds of a batch, padding, prompts and beams included.")
    dtype: str = HfArg(default="float32", help="Of the weights: float32, float16 or bfloat16.")
    device: str = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda.")
    num_threads: int | None = HfArg(default=None, help="CPU threads of each process.")
    num_workers: int = HfArg(default=0, help="Processes that decode audio beside each process.")
    min_duration_s: float = HfArg(default=0.01, help="Shorter recordings are skipped, and named.")
    max_duration_s: float | None = HfArg(default=None, help="Longer recordings are skipped, and named.")
    on_bad_audio: str = HfArg(default="fail", help="Recordings that cannot be read: `fail`, or `skip` and name them.")
    seed: int = HfArg(default=0, help="Of the conditions.")
    overwrite: bool = HfArg(default=False, help="Begin anew where there is an output.")

    def __post_init__(self):
        for name in ("model", "data", "output"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing; give --model, --data and --output.")
        for name, choices in (("dtype", DTYPES), ("on_bad_audio", ("fail", "skip"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"`device` is {self.device}, but this torch ({torch.__version__}) finds none; use cpu.")
        if len(set(self.domain or ())) < len(self.domain or ()):
            raise ValueError(f"`domain` names a condition twice: {' '.join(self.domain)}.")


def transcribe(args: TranscriptionArguments, state: PartialState) -> None:
    """
    Writes the hypotheses of a data set, or goes on with them; every process has to call it.

    Args:
        args ([`TranscriptionArguments`]): Which recogniser and data, where to.
        state (`PartialState`): Of the processes that share the work.
    """
    device = state.device if state.num_processes > 1 else torch.device(args.device)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)

    # 1. the recogniser, and whether it can do what is asked
    decoding = decoding_settings(args)
    recogniser = open_recogniser(
        args.model, settings=decoding, revision=args.revision, dtype=DTYPES[args.dtype], device=device
    )
    hotwords = [keyword.text for keyword in read_keywords(args.hotwords)] if args.hotwords else None
    asked = {"language": args.language, "prompt": args.prompt, "itn": args.itn, "hotwords": hotwords}
    recogniser.check(**asked, timestamps=args.timestamps)

    # 2. the recordings, and what of them is done already
    recordings = read_recordings(
        args.data,
        min_duration_s=args.min_duration_s,
        max_duration_s=args.max_duration_s,
        on_bad_audio=args.on_bad_audio,
    )
    too_long = np.flatnonzero(recordings.durations > (recogniser.max_duration_s or np.inf))
    if len(too_long):
        raise ValueError(
            f"{len(too_long)} recordings, such as {recordings.rows[int(too_long[0])]['id']!r}, have more than the "
            f"{recogniser.max_duration_s:g} s that this model hears at once; --max_duration_s "
            f"{recogniser.max_duration_s:g} leaves them out."
        )
    outputs = open_outputs(args, recogniser, recordings, hotwords, state)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": state.num_processes,
        "batch_duration_s": args.batch_duration_s,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    logger.info("%s on %s (%s, %d threads, %d processes), %s", args.model, facts["device"], args.dtype,
                facts["threads"], state.num_processes, outputs[0][1].settings["decoding"]["mode"])  # fmt: skip
    logger.info("%d recordings, %.3f h, from %s; %d skipped", len(recordings.rows),
                recordings.durations.sum() / 3600, ", ".join(args.data),
                len(recordings.skipped))  # fmt: skip

    # 3. transcribe
    for condition, output in outputs:
        missing = [i for i, key in enumerate(recordings.rows["id"][:]) if key not in output.done]
        logger.info("%s: %d of %d to do", output.path, len(missing), len(recordings.rows))
        channel = condition and condition_channel(condition, recordings.rows, seed=args.seed)
        add_rows(recogniser, recordings, missing, channel, output, asked, args, state)
        output.close()
        state.wait_for_everyone()

        # 4. one file, and how fast it was
        if state.is_main_process and (missing or not output.is_complete):
            summary = finish(output, recordings, facts)
            logger.info("%s: %d recordings, %d skipped (listed in its .meta.json), RTF %.4f, RTFx %.1f",
                        output.path, summary["num_recordings"], len(summary["skipped"]), summary["rtf"] or 0,
                        summary["rtfx"] or 0)  # fmt: skip
            for key, reason in list(summary["skipped"].items())[:5]:
                logger.info("skipped %s: %s", key, reason)
        state.wait_for_everyone()


def decoding_settings(args: TranscriptionArguments) -> DecodingSettings:
    mode = args.mode or ("lm" if has_language_model(args.model, revision=args.revision) else "ctc")
    return DecodingSettings(
        mode=mode,
        num_beams=args.num_beams,
        ctc_beam_size=args.ctc_beam_size,
        ctc_weight=args.ctc_weight,
        hotword_bonus=args.hotword_bonus,
        hotwords_in_prompt=args.hotwords_in_prompt,
        guard=GuardSettings() if args.guard else None,
        tokens_per_s=args.tokens_per_s,
        long_audio=args.long_audio,
        max_window_s=args.max_window_s,
        batch_duration_s=args.batch_duration_s,
    )


def open_outputs(args, recogniser, recordings, hotwords, state) -> list[tuple[str | None, HypothesisFile]]:
    """Each condition with its file; all are checked before any work."""
    settings = {
        **model_identity(args.model, revision=args.revision),
        "decoding": {k: v for k, v in dataclasses.asdict(recogniser.settings).items() if k != "batch_duration_s"},
        "dtype": args.dtype,
        "data": args.data,
        "language": args.language,
        "prompt": args.prompt,
        "itn": args.itn,
        "hotwords": hotwords,
        "timestamps": args.timestamps,
    }
    outputs = []
    for condition in args.domain or [None]:
        path = Path(args.output)
        if condition is not None:
            condition_channel(condition, recordings.rows, seed=args.seed)
            path = path.with_name(f"{path.stem}.{Path(condition).stem}{path.suffix}")
        own = {**settings, "condition": condition, "seed": args.seed if condition else None}
        outputs.append((condition, HypothesisFile(path, own, overwrite=args.overwrite, rank=state.process_index)))
    state.wait_for_everyone()
    for _, output in outputs:
        output.open()
    state.wait_for_everyone()  # before any row is added, so that all know the same rows to be done
    return outputs


def add_rows(recogniser, recordings: Recordings, missing, channel, output, asked, args, state) -> None:
    """Appends a row for each recording of `missing` that falls to this process."""
    if not missing:
        return
    rows, rate = recordings.rows.select(missing), recogniser.sampling_rate
    examples = PretrainingDataset(
        rows, sampling_rate=rate, channel=channel, seed=args.seed, on_bad_audio=args.on_bad_audio
    )
    prompt_s, beams = (PROMPT_S, args.num_beams) if recogniser.settings.mode == "lm" else (0.0, 1)
    cost = np.minimum(beams * (recordings.durations[missing] + prompt_s), args.batch_duration_s)
    batches = list(TokenBudgetBatchSampler(cost, budget=args.batch_duration_s, shuffle=False))
    batches = batches[state.process_index :: state.num_processes]
    loader = DataLoader(examples, batch_sampler=batches, collate_fn=list, num_workers=args.num_workers)
    columns = [name for name in rows.column_names if name not in OWN_COLUMNS]
    total_s = sum(recordings.durations[missing[row]] for batch in batches for key in batch for row in key.rows)
    bar = "{desc}{percentage:3.0f}%|{bar}| {n:.3f}/{total:.3f} h [{elapsed}<{remaining}{postfix}]"
    hidden = not (state.is_main_process and sys.stderr.isatty())
    compute_s = audio_s = 0.0
    with tqdm(total=total_s / 3600, bar_format=bar, disable=hidden) as progress:
        for batch, decoded in zip(batches, loader, strict=True):
            pairs = [(rows[key.rows[0]], example) for key, example in zip(batch, decoded, strict=True)]
            bad = [note for _, example in pairs for note in example.notes if note[1] == "bad"]
            output.add([{"id": key, "skipped": message} for key, _, message in bad])
            pairs = [(row, example) for row, example in pairs if len(example.wave)]
            if not pairs:
                continue
            start = time.perf_counter()
            results = recogniser(
                [example.wave for _, example in pairs], sampling_rate=rate, timestamps=args.timestamps, **asked
            )
            seconds = time.perf_counter() - start
            share_s = seconds / len(pairs)
            output.add([
                as_row(row, columns, result, share_s, channel and channel.draw(
                    len(example.wave), sampling_rate=rate, seed=args.seed, id=row["id"], epoch=0
                ))
                for (row, example), result in zip(pairs, results, strict=True)
            ])  # fmt: skip
            heard_s = sum(result.duration_s for result in results)
            compute_s, audio_s = compute_s + seconds, audio_s + heard_s
            progress.update(heard_s / 3600)
            progress.set_postfix_str(f"RTFx {audio_s / compute_s:.1f}")


def as_row(row: dict, columns: list[str], result, share_s: float, channel: ChannelDraw | None) -> dict:
    """One line of the output."""
    record = result.to_dict()
    windows = record.pop("windows")
    own = {"id": row["id"], "text": record.pop("text")}
    if row["text"] is not None:
        own["reference"] = row["text"]
    own |= record | {"num_windows": len(windows), "rtf": share_s / result.duration_s, "audio": row["audio"]["path"]}
    if row["offset"]:
        own["offset_s"] = row["offset"]
    if channel is not None:
        own["channel"] = channel.to_json()
    further = {name: row[name] for name in columns if row[name] is not None and name not in own}
    return {**own, **further}


def finish(output: HypothesisFile, recordings: Recordings, facts: dict) -> dict:
    """Joins the parts and writes the meta file."""
    rows = output.finish(recordings.rows["id"][:])
    heard = [row for row in rows if "skipped" not in row]
    skipped = recordings.skipped | {row["id"]: row["skipped"] for row in rows if "skipped" in row}
    audio_s = sum(row["duration_s"] for row in heard)
    compute_s = sum(row["duration_s"] * row["rtf"] for row in heard)
    summary = {
        "complete": True,
        "num_recordings": len(heard),
        "hours": audio_s / 3600,
        "compute_s": compute_s,
        "rtf": compute_s / audio_s if audio_s else None,
        "rtfx": audio_s / compute_s if compute_s else None,
        "num_cut_off": sum(row["hit_max_new_tokens"] for row in heard),
        "skipped": skipped,
        **facts,
    }
    output.write_meta(summary)
    return summary
