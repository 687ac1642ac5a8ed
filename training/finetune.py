"""
Trains a recogniser on labelled recordings, all of it at once: NEST-ASR (encoder, CTC head, adaptor, language model),
or the encoder with a CTC head alone.

    accelerate launch training/finetune.py configs/finetune/nest_asr.yaml --audio_tower runs/nest_large \\
        --language_model Qwen/Qwen3-0.6B --train_data train.json --eval_data dev.json --output_dir runs/asr
    accelerate launch --multi_gpu --num_processes 8 training/finetune.py ...            # N GPUs (configs/accelerate/)
    python training/finetune.py --task ctc --preset tiny ... --use_cpu true             # CTC, debug on a laptop

YAML files hold what differs from the defaults; options on the command line win. A run that was killed goes on from its
newest whole checkpoint when the same command is given again.
"""

import sys

from nest_hf.finetuning_arguments import FinetuneDataArguments, FinetuneModelArguments, FinetuneTrainingArguments
from nest_hf.finetuning_run import finetune
from nest_hf.parsing import error_line, parse_arguments
from nest_hf.runs import end_processes


def main():
    finetune(*parse_arguments(FinetuneModelArguments, FinetuneDataArguments, FinetuneTrainingArguments))


if __name__ == "__main__":
    try:
        main()
        end_processes()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")  # a progress bar may stand in the line before
