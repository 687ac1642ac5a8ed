"""
Stage 0: makes telephone calls of wideband recordings, and brings recordings of real calls to the model's rate.

    python training/prepare_data.py configs/telephone.yaml --data train.json --output_dir calls            # all cores
    python training/prepare_data.py configs/telephone.yaml --data wide.json --real_data calls.json --dev_share 0.05 \\
        --noise_data noises/ --output_dir calls --format parquet
    python training/prepare_data.py configs/telephone.yaml --data train.json --output_dir calls --check 10  # look
    python training/prepare_data.py configs/telephone.yaml --data train.json --output_dir /nfs/calls --engine ray

The same command again goes on where it was stopped. The folder then holds `audio/` with `train.jsonl` and `dev.jsonl`
(NeMo) and `train.chatml.jsonl` and `dev.chatml.jsonl` (FunASR), or with `--format parquet` the folders `train/` and
`dev/`; `rejected.jsonl`, `report.json`, `config_resolved.yaml`, and in `parts/` what is done. Each row keeps its draw
in the column `channel`.
"""

import sys

from nest_hf.parsing import error_line, parse_arguments
from nest_hf.preparation_run import PreparationArguments, prepare


def main():
    prepare(*parse_arguments(PreparationArguments))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")
