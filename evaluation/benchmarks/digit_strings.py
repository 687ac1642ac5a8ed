"""
Spoken digit strings: word errors of a small CTC model from scratch, and how far its timestamps are from the joins.

    python evaluation/benchmarks/digit_strings.py fsdd-train.parquet fsdd-test.parquet --work runs/digits

makes strings of the training takes and, from the test takes alone, of the test takes; trains
configs/finetune/fsdd_ctc.yaml (where it is not trained yet); and prints the error rate of the test strings (every
digit is a word, written without spaces) and the distances of each digit's ends from the known joins.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2Processor

from nest_hf.asr_audio import read_waves
from nest_hf.configuration_nest_asr import num_encoder_frames
from nest_hf.ctc_decoding import ctc_greedy
from nest_hf.error_rates import character_errors
from nest_hf.finetuning import ctc_text
from nest_hf.modeling_nest import NestForCTC
from nest_hf.timestamps import character_timestamps

ROOT = Path(__file__).parents[2]


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


@torch.no_grad()
def decode(folder: Path, manifest: Path, batch_size: int = 16):
    """Per string: reference, decoded text, known joins, and the timestamps of the reference's characters."""
    model = NestForCTC.from_pretrained(folder).eval()
    processor = Wav2Vec2Processor.from_pretrained(folder)
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    blank = model.config.pad_token_id
    for start in range(0, len(lines), batch_size):
        batch = lines[start : start + batch_size]
        waves = [soundfile.read(manifest.parent / line["audio_filepath"], dtype="float32")[0] for line in batch]
        waves = read_waves(waves, 8000, extractor.sampling_rate)
        features = extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        log_probs = model(**features).logits.float().log_softmax(-1)
        lengths = num_encoder_frames(features["attention_mask"].long().sum(-1), model.config.subsampling_factor)
        ids = ctc_greedy(log_probs, lengths, blank_id=blank)
        texts = [line["text"] for line in batch]
        times = character_timestamps(log_probs, lengths, texts, tokenizer, blank_id=blank)
        for line, row, timed in zip(batch, ids, times, strict=True):
            yield line["text"], ctc_text(tokenizer, row), line["joins"], timed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="takes of single digits to train on")
    parser.add_argument("test", help="takes of single digits to test on")
    parser.add_argument("--work", default="runs/digits", help="where strings and model go")
    parser.add_argument("--num_train", type=int, default=4800)
    parser.add_argument("--num_test", type=int, default=200)
    parser.add_argument("--num_threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    work = Path(options.work).absolute()
    for seed, split in enumerate(("train", "test")):
        if not (work / split / "manifest.jsonl").is_file():
            source = Path(getattr(options, split)).absolute()
            number = getattr(options, f"num_{split}")
            run("training/make_digit_strings.py", source, work / split, "--number", number, "--seed", seed)
    if not (work / "model" / "eval_results.json").is_file():
        run("training/finetune.py", "configs/finetune/fsdd_ctc.yaml", "--train_data", work / "train/manifest.jsonl",
            "--eval_data", f"test={work}/test/manifest.jsonl", "--output_dir", work / "model",
            "--num_threads", options.num_threads, "--report_to", "none", "--disable_tqdm", "true")  # fmt: skip

    references, texts, starts, ends = [], [], [], []
    for reference, text, joins, timed in decode(work / "model", work / "test" / "manifest.jsonl"):
        references.append(reference)
        texts.append(text)
        starts += [abs(character.start_s - join[0]) for character, join in zip(timed, joins, strict=True)]
        ends += [abs(character.end_s - join[1]) for character, join in zip(timed, joins, strict=True)]
    result = character_errors(texts, references, level="raw").result()
    print(f"WER {100 * result['cer']:.2f} % of {result['num_tokens']} digits, 95 % interval {result['cer_interval']}")
    for name, distances in (("starts", starts), ("ends", ends), ("all", starts + ends)):
        median, high = 1000 * np.quantile(distances, [0.5, 0.9])
        print(f"boundary error of {name}: median {median:.0f} ms, 90 % below {high:.0f} ms")


if __name__ == "__main__":
    main()
