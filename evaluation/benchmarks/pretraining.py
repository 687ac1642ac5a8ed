"""
Times NEST pretraining, and NeMo's beside it: training step, encoder, data loading.

    python evaluation/benchmarks/pretraining.py --size medium                                   # ours alone
    python evaluation/benchmarks/pretraining.py --size medium --nemo_python nemo-venv/bin/python   # and NeMo 3.0.0
    python evaluation/benchmarks/pretraining.py --task encoder --size large --nemo_python ...
    python evaluation/benchmarks/pretraining.py --task data --nemo_python ... --json

step     NestTrainer's own loop: noise, dither, features, masks in the collator; forward, backward, AdamW.
         NeMo: preprocessor twice, quantizer, masks, forward, backward, AdamW, as its training_step; its noise
         augmentation, part of its loader, is not counted.
encoder  Encoder forward in eval mode.
data     Items/s of 64 wav files of 10 s with noise files and MultiSpeakerNoise, no worker processes: waveforms alone,
         as NeMo's loader gives them, and with features and masks (`with_features`).
Both sides run in processes of their own that live at the same time and work in turns. Memory is the peak of the
process above what it took after its imports. Figures are medians; 4 x 10 s, float32, 2 threads by default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLING_RATE = 16000
SIZES = {  # for NeMo; ours are presets of the same sizes
    "tiny": {"num_classes": 64, "d_model": 64, "n_heads": 4, "n_layers": 3, "subsampling_conv_channels": 32},
    "medium": {"d_model": 256, "n_heads": 4, "n_layers": 16},
    "large": {},
}
NOISE = {"prob": 0.5, "noise_ratio": 0.5, "min_r_speech": -5.0, "max_r_speech": 5.0, "min_r_noise": -5.0,
         "max_r_noise": 20.0, "min_mix_rate": 0.5, "max_mix_rate": 0.5, "min_num_segments": 1,
         "max_num_segments": 1, "min_num_speakers": 1, "max_num_speakers": 1}  # fmt: skip


# --- both sides ------------------------------------------------------------------------------------------------------


def make_waves(batch: int, seconds: float):
    """(B, N) float32: a rising tone and hiss."""
    import numpy as np

    t = np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    rng = np.random.default_rng(0)
    tones = [0.3 * np.sin(2 * np.pi * (150 + 90 * i + 80 * t) * t) for i in range(batch)]
    return (np.stack(tones) + 0.01 * rng.standard_normal((batch, len(t)))).astype(np.float32)


def write_files(folder: Path) -> tuple[str, str]:
    """64 recordings of 10 s and 16 noises of 15 s with their manifests."""
    import numpy as np
    import soundfile

    manifests = []
    rng = np.random.default_rng(1)
    for kind, count, seconds in (("speech", 64, 10.0), ("noise", 16, 15.0)):
        lines = []
        waves = make_waves(1, seconds)
        for index in range(count):
            wave = waves[0] + 0.05 * rng.standard_normal(waves.shape[1]).astype(np.float32)
            soundfile.write(folder / f"{kind}{index}.wav", wave, SAMPLING_RATE, subtype="PCM_16")
            row = {"audio_filepath": str(folder / f"{kind}{index}.wav"), "duration": seconds, "text": "-"}
            lines.append(json.dumps(row) + "\n")
        manifests.append(str(folder / f"{kind}.json"))
        Path(manifests[-1]).write_text("".join(lines))
    return tuple(manifests)


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(**values) -> None:
    print("RESULT " + json.dumps(values), flush=True)


def wait_for_turn() -> None:
    if not sys.stdin.readline():
        sys.exit()


# --- ours ------------------------------------------------------------------------------------------------------------


def ours_step(args) -> None:
    import torch
    from transformers import TrainerCallback

    from nest_hf import NestConfig, NestFeatureExtractor, NestForPreTraining
    from nest_hf.arguments import NestTrainingArguments
    from nest_hf.data import MultiSpeakerNoise, PretrainingCollator, PretrainingDataset, TokenBudgetBatchSampler
    from nest_hf.trainer import NestTrainer

    base = peak_mb()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    audio = [{"array": wave, "sampling_rate": SAMPLING_RATE} for wave in make_waves(args.batch, args.seconds)]
    steps = args.steps * (args.rounds + 1)  # one epoch of them, so that no loader starts in between
    rows = [
        {"id": f"{step}/{i}", "audio": item, "offset": 0.0, "duration": args.seconds}
        for step in range(steps)
        for i, item in enumerate(audio)
    ]

    class Turns(TrainerCallback):
        """Times each step, and hands over to the other side after a round."""

        times: list[float] = []
        losses: list[float] = []

        def on_train_begin(self, *_, **__):
            wait_for_turn()
            self.start = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    turns = Turns()

    class Timed(NestTrainer):
        def _maybe_log_save_evaluate(self, *inner, **options):
            super()._maybe_log_save_evaluate(*inner, **options)
            if len(turns.times) == steps:  # called once more at the end of the epoch
                return
            turns.times.append(time.perf_counter() - turns.start)
            if len(turns.times) % args.steps == 0:
                say(times=turns.times[-args.steps :], losses=turns.losses[-args.steps :], memory_mb=peak_mb() - base)
                wait_for_turn()
            turns.start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        model = NestForPreTraining(NestConfig.from_preset(args.size))
        extractor = NestFeatureExtractor()
        training = NestTrainingArguments(
            output_dir=folder, max_steps=steps, schedule="trainer", warmup_steps=0,
            lr_scheduler_type="constant", learning_rate=1e-4, logging_steps=1, save_strategy="no", use_cpu=True,
            eval_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        Timed(
            model=model,
            args=training,
            train_dataset=PretrainingDataset(rows),
            train_sampler=TokenBudgetBatchSampler([args.seconds] * len(rows), batch_size=args.batch),
            train_collator=PretrainingCollator(model.config, extractor, augmentation=MultiSpeakerNoise(**NOISE)),
            callbacks=[turns],
        ).train()


def ours_encoder(args) -> None:
    import torch

    from nest_hf import NestConfig, NestFeatureExtractor, NestModel

    base = peak_mb()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = NestModel(NestConfig.from_preset(args.size)).eval()
    inputs = NestFeatureExtractor()(list(make_waves(args.batch, args.seconds)), sampling_rate=SAMPLING_RATE)
    with torch.inference_mode():
        time_rounds(args, lambda: model(**inputs), base)


def ours_data(args) -> None:
    import torch

    from nest_hf import NestConfig, NestFeatureExtractor
    from nest_hf.data import (
        MultiSpeakerNoise,
        NoiseSource,
        PretrainingCollator,
        PretrainingDataset,
        TokenBudgetBatchSampler,
        load_speech_dataset,
    )

    base = peak_mb()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        speech, noise = write_files(Path(folder))
        rows = load_speech_dataset(speech)
        dataset = PretrainingDataset(rows, noise=NoiseSource(load_speech_dataset(noise)))
        sampler = TokenBudgetBatchSampler(rows["duration"][:], batch_size=8)
        collator = PretrainingCollator(NestConfig(), NestFeatureExtractor(), augmentation=MultiSpeakerNoise(**NOISE))
        for name, collate in (("waveforms", collator.waveforms), ("with_features", collator)):
            loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
            time_rounds(args, lambda loader=loader: sum(1 for _ in loader), base, name=name, per=64)


def time_rounds(args, work, base: float, name: str = "", per: int | None = None) -> None:
    """Runs `work` `steps` times per turn; `per` items each make a rate."""
    for _ in range(args.rounds + 1):
        wait_for_turn()
        times = []
        for _ in range(1 if per else args.steps):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        say(times=[t / per for t in times] if per else times, name=name, memory_mb=peak_mb() - base)


# --- NeMo ------------------------------------------------------------------------------------------------------------


def nemo_model(size: str):
    """NeMo's denoising NEST of a size, on NeMo's published configuration."""
    from nemo.collections.asr.models.ssl_models import EncDecDenoiseMaskedTokenPredModel
    from omegaconf import OmegaConf

    overrides = dict(SIZES[size])
    classes = overrides.pop("num_classes", 8192)
    encoder = {
        "feat_in": 80, "feat_out": -1, "n_layers": 17, "d_model": 512, "use_bias": True, "subsampling": "dw_striding",
        "subsampling_factor": 8, "subsampling_conv_channels": 256, "causal_downsampling": False,
        "ff_expansion_factor": 4, "self_attention_model": "rel_pos", "n_heads": 8, "att_context_size": [-1, -1],
        "att_context_style": "regular", "xscaling": True, "untie_biases": True, "pos_emb_max_len": 5000,
        "conv_kernel_size": 9, "conv_norm_type": "batch_norm", "conv_context_size": None, "dropout": 0.1,
        "dropout_pre_encoder": 0.1, "dropout_emb": 0.0, "dropout_att": 0.1, **overrides,
    }  # fmt: skip
    modules = "nemo.collections.asr.modules"
    config = {
        "sample_rate": SAMPLING_RATE, "num_classes": classes, "num_books": 1, "code_dim": 16,
        "squeeze_single": False, "mask_position": "pre_conv",
        "preprocessor": {"_target_": f"{modules}.AudioToMelSpectrogramPreprocessor", "sample_rate": SAMPLING_RATE,
                         "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01, "window": "hann",
                         "features": 80, "n_fft": 512, "log": True, "frame_splicing": 1, "dither": 1e-5,
                         "pad_to": 16, "pad_value": 0.0},
        "spec_augment": {"_target_": f"{modules}.SpectrogramAugmentation", "freq_masks": 0, "time_masks": 0,
                         "freq_width": 27, "time_width": 0.05},
        "masking": {"_target_": f"{modules}.RandomBlockMasking", "block_size": 40, "mask_prob": 0.01, "feat_in": 80,
                    "freeze": True, "allow_overlap": True},
        "quantizer": {"_target_": f"{modules}.RandomProjectionVectorQuantizer", "feat_in": 80, "code_dim": 16,
                      "num_books": 1, "num_classes": classes, "dist_fn": "l2", "freeze": True,
                      "squeeze_single": False, "combine_time_steps": 8},
        "encoder": {"_target_": f"{modules}.ConformerEncoder", **encoder},
        "decoder": {"_target_": f"{modules}.MultiSoftmaxDecoder", "feat_in": encoder["d_model"],
                    "num_classes": classes, "num_decoders": 1, "squeeze_single": False, "use_bias": True},
        "loss": {"_target_": "nemo.collections.asr.losses.MultiMLMLoss", "combine_time_steps": 8,
                 "mask_threshold": 0.8, "num_decoders": 1, "squeeze_single": False},
    }  # fmt: skip
    return EncDecDenoiseMaskedTokenPredModel(cfg=OmegaConf.create(config))


def nemo_start(args):
    import torch
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch


def nemo_step(args) -> None:
    torch = nemo_start(args)
    import nemo.collections.asr.models  # noqa: F401  (counted as import)

    base = peak_mb()
    model = nemo_model(args.size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=1e-3)
    clean = torch.from_numpy(make_waves(args.batch, args.seconds))
    noisy = clean + 0.05 * torch.randn_like(clean)
    lengths = torch.full((args.batch,), clean.shape[1])
    for _ in range(args.rounds + 1):
        wait_for_turn()
        times, losses = [], []
        for _ in range(args.steps):
            start = time.perf_counter()
            features, _ = model.preprocessor(input_signal=clean.clone(), length=lengths)
            noisy_features, frames = model.preprocessor(input_signal=noisy.clone(), length=lengths)
            _, tokens = model.quantizer(input_signal=features)
            masked, masks = model.mask_processor(input_feats=noisy_features, input_lengths=frames)
            encoded, encoded_frames = model.encoder(audio_signal=masked, length=frames)
            log_probs = model.decoder(encoder_output=encoded)
            loss = model.loss(masks=masks, decoder_outputs=log_probs, targets=tokens, decoder_lengths=encoded_frames)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
            losses.append(loss.item())
        say(times=times, losses=losses, memory_mb=peak_mb() - base)


def nemo_encoder(args) -> None:
    torch = nemo_start(args)
    import nemo.collections.asr.models  # noqa: F401

    base = peak_mb()
    model = nemo_model(args.size).eval()
    waves = torch.from_numpy(make_waves(args.batch, args.seconds))
    lengths = torch.full((args.batch,), waves.shape[1])
    with torch.inference_mode():
        features, frames = model.preprocessor(input_signal=waves, length=lengths)
        time_rounds(args, lambda: model.encoder(audio_signal=features, length=frames), base)


def nemo_data(args) -> None:
    torch = nemo_start(args)
    from nemo.collections.asr.data.ssl_dataset import get_audio_noise_dataset
    from nemo.collections.asr.modules.ssl_modules.augmentation import MultiSpeakerNoiseAugmentation

    base = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        speech, noise = write_files(Path(folder))
        config = {"manifest_filepath": speech, "noise_manifest": noise, "sample_rate": SAMPLING_RATE,
                  "max_duration": 60.0, "min_duration": 1.0, "trim_silence": False}  # fmt: skip
        dataset = get_audio_noise_dataset(config, batch_augmentor=MultiSpeakerNoiseAugmentation(**NOISE))
        loader = torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=dataset.collate_fn)
        time_rounds(args, lambda: sum(1 for _ in loader), base, name="waveforms", per=64)


# --- the two in turns ------------------------------------------------------------------------------------------------


class Side:
    """A process that works when it is its turn."""

    def __init__(self, python: str, name: str, args):
        command = [python, __file__, "--side", name]
        for key in ("task", "size", "batch", "seconds", "steps", "rounds", "threads"):
            command += [f"--{key}", str(getattr(args, key))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.rounds: list[dict] = []

    def turn(self) -> bool:
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                self.rounds.append(json.loads(line[7:]))
                return True
        if self.process.wait():
            self.log.seek(0)
            sys.exit(f"error: the side failed:\n{self.log.read().decode(errors='replace')[-2000:]}")
        return False

    def result(self, name: str = "") -> dict:
        rounds = [r for r in self.rounds if r.get("name", "") == name][1:]  # the first round warms up
        times = [t for r in rounds for t in r["times"]]
        losses = [x for r in self.rounds for x in r.get("losses", [])]
        result = {
            "median_s": round(statistics.median(times), 4),
            "min_s": round(min(times), 4),
            "max_s": round(max(times), 4),
            "memory_mb": round(self.rounds[-1]["memory_mb"]),
        }
        if losses:
            result["first_loss"], result["last_loss"] = round(losses[0], 3), round(losses[-1], 3)
        return result


def compare(args) -> dict:
    sides = {"ours": Side(sys.executable, "ours", args)}
    if args.nemo_python:
        sides["nemo"] = Side(args.nemo_python, "nemo", args)
    waiting = list(sides.values())
    while waiting:
        waiting = [side for side in waiting if side.turn()]
    report = {"task": args.task, "size": args.size, "batch": args.batch, "seconds": args.seconds,
              "threads": args.threads, "dtype": "float32"}  # fmt: skip
    name = "waveforms" if args.task == "data" else ""
    for key, side in sides.items():
        report[key] = side.result(name)
    if args.task == "data":
        report["ours_with_features"] = sides["ours"].result("with_features")
        for key in ("ours", "ours_with_features", "nemo"):
            if key in report:
                report[key]["items_per_s"] = round(1 / report[key]["median_s"], 1)
    else:
        report["step_s"] = report["ours"]["median_s"]
    if "nemo" in report:
        report["times_faster"] = round(report["nemo"]["median_s"] / report["ours"]["median_s"], 2)
        report["memory_ratio"] = round(report["ours"]["memory_mb"] / report["nemo"]["memory_mb"], 3)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("step", "encoder", "data"), default="step")
    parser.add_argument("--size", choices=tuple(SIZES), default="medium")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=5, help="per turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nemo_python", help="interpreter of an environment with nemo_toolkit[asr]==3.0.0")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--side", choices=("ours", "nemo"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        globals()[f"{args.side}_{args.task}"](args)
        return
    report = compare(args)
    if args.json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        print(f"{key:20} {value}")


if __name__ == "__main__":
    main()
