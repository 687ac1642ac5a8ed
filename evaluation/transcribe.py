"""
Recordings -> hypotheses: any recogniser, any data set, one JSON line per recording.

    python evaluation/transcribe.py --model runs/asr/final_checkpoint.txt --data test.json --output hyp/nest.jsonl
    python evaluation/transcribe.py --model openai/whisper-small --data test.json --output hyp/whisper.jsonl \\
        --language zh --device cuda --dtype float16
    accelerate launch --num_processes 4 evaluation/transcribe.py --model runs/asr --data test.json --output hyp.jsonl
    python evaluation/transcribe.py --model runs/asr --data test.json --output hyp.jsonl \\
        --domain clean_16k clean_8k g711 loss babble

`--model` is a folder, a Hub id or a stage pointer of NEST-ASR, NEST-CTC, a converted Fun-ASR-Nano, any CTC, speech
sequence-to-sequence or audio LLM of transformers, or a PEFT adapter on one of them. The same command again goes on
where it stopped; a kill loses no finished batch. `--domain` writes `hyp.<domain>.jsonl` for each condition.

Each line has `id`, `text`, `reference`, `duration_s`, `ctc_text`, `lm_text`, `decisions` of the guard, `hotwords`,
`hit_max_new_tokens`, with `--timestamps true` also `characters` and `words`; `rtf`: the seconds of its batch, of which
each recording, padded to the same length, has an equal share, over its duration; `audio`: its path, or null; and the
further columns of the data. `<output>.meta.json` has the settings, what was skipped and why, and RTF and RTFx.
"""

import logging
import sys
from datetime import timedelta

import datasets
import torch
import transformers
from accelerate import PartialState

from nest_hf.parsing import error_line, parse_arguments
from nest_hf.transcription_run import TranscriptionArguments, transcribe


def main() -> None:
    (args,) = parse_arguments(TranscriptionArguments)
    # the first process to finish waits for the last one, which may have harder recordings
    state = PartialState(cpu=torch.device(args.device).type == "cpu", timeout=timedelta(hours=24))
    level = logging.INFO if state.is_main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    transcribe(args, state)
    state.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
