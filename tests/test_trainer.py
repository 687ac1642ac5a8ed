"""NestTrainer: NeMo's schedule, a loss over all frames, exact validation, whole checkpoints, exact resume."""

import json
import math
import shutil
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from recordings import make_recordings
from torch.nn import BatchNorm1d
from torch.nn import functional as F
from transformers import TrainerCallback, set_seed

from nest_hf import NestConfig, NestFeatureExtractor, NestForPreTraining, NestModel
from nest_hf.arguments import NestTrainingArguments
from nest_hf.callbacks import TrainLogCallback
from nest_hf.data import (
    ExampleKey,
    MultiSpeakerNoise,
    NoiseSource,
    PretrainingCollator,
    PretrainingDataset,
    TokenBudgetBatchSampler,
    load_speech_dataset,
)
from nest_hf.trainer import NestTrainer, last_complete_checkpoint, noam_factor

NOISE = MultiSpeakerNoise()
NO_DROPOUT = {"dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return {
        "train": load_speech_dataset(make_recordings(folder / "train", number=8, seed=1)),
        "validation": load_speech_dataset(make_recordings(folder / "validation", number=5, seed=2)),
        "noise": load_speech_dataset(make_recordings(folder / "noise", number=2, seed=3)),
    }


class FixedPlan(list):
    """Batches of rows, the same in every epoch."""

    def set_epoch(self, epoch):
        pass


def trainer_of(
    rows, output_dir, *, config=None, plan=None, augmentation=NOISE, callbacks=(), **arguments
) -> NestTrainer:
    """As pretrain.py builds it: a new model and new data sets, a tiny encoder; dropout, dither, noise and masks on."""
    defaults = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "schedule": "trainer",
        "learning_rate": 2e-3,
        "warmup_steps": 0,
        "max_steps": 3,
        "per_device_eval_batch_size": 2,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = NestTrainingArguments(**{**defaults, **arguments})
    set_seed(args.seed)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "subsampling_conv_channels": 16, "mask_prob": 0.02}
    model = NestForPreTraining(NestConfig.from_preset("tiny", **{**size, **(config or {})}))
    extractor = NestFeatureExtractor()
    datasets = {
        name: PretrainingDataset(rows[name], noise=NoiseSource(rows["noise"])) for name in ("train", "validation")
    }
    sampler = TokenBudgetBatchSampler(rows["train"]["duration"][:], batch_size=2) if plan is None else plan
    eval_sampler = TokenBudgetBatchSampler(
        rows["validation"]["duration"][:], batch_size=args.per_device_eval_batch_size, shuffle=False
    )
    eval_collator = PretrainingCollator(model.config, extractor, augmentation=augmentation, dither=False)
    return NestTrainer(
        model=model,
        args=args,
        train_dataset=datasets["train"],
        eval_dataset={"validation": datasets["validation"]},
        train_sampler=sampler,
        train_collator=PretrainingCollator(model.config, extractor, augmentation=augmentation),
        eval_sets={"validation": (datasets["validation"], eval_sampler, eval_collator)},
        processing_class=extractor,
        callbacks=[TrainLogCallback(args.output_dir), *callbacks],
    )


class Record(TrainerCallback):
    """Learning rate and gradients that every update used."""

    def __init__(self):
        self.learning_rates, self.gradients = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.learning_rates.append(optimizer.param_groups[0]["lr"])
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


class StopAfterSave(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


# --- schedule and optimizer -----------------------------------------------------------------------------------------


def test_noam_factor_is_nemos():
    facts = golden.facts("noam")
    args = facts["args"]
    for step, lr in facts["lr"].items():
        factor = noam_factor(
            int(step),
            d_model=args["d_model"],
            warmup_steps=args["warmup_steps"],
            min_factor=args["min_lr"] / args["lr"],
        )
        assert args["lr"] * factor == pytest.approx(lr, rel=1e-12)


def test_noam_floor_holds_only_after_the_warmup():
    options = {"d_model": 512, "warmup_steps": 100, "min_factor": 1e-3}
    assert noam_factor(1, **options) < 1e-3
    assert noam_factor(10**7, **options) == 1e-3
    assert noam_factor(1, d_model=4, warmup_steps=0) == 0.5


def test_updates_use_nemos_learning_rates(rows, tmp_path):
    """Update n uses the rate after n - 1 scheduler steps, and NeMo's 0 and 1 steps have the same."""
    record = Record()
    noam = {"schedule": "noam", "learning_rate": 5.0, "warmup_steps": 3, "min_lr": 1e-6, "max_steps": 5}
    trainer = trainer_of(rows, tmp_path, callbacks=[record], **noam)
    trainer.train()
    expected = [5.0 * 32**-0.5 * min(max(1, n) ** -0.5, max(1, n) * 3**-1.5) for n in range(5)]
    assert record.learning_rates == pytest.approx(expected, rel=1e-12)
    assert record.learning_rates[0] == record.learning_rates[1]
    logged = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert logged == record.learning_rates


def test_weight_decay_on_every_parameter(rows, tmp_path):
    trainer = trainer_of(rows, tmp_path, weight_decay=0.25)
    groups = [group for group in trainer.create_optimizer().param_groups if group["params"]]
    assert {group["weight_decay"] for group in groups} == {0.25}
    decayed = {id(p) for group in groups for p in group["params"]}
    assert decayed == {id(p) for p in trainer.model.parameters()}
    assert groups[0]["betas"] == (0.9, 0.98) and groups[0]["eps"] == 1e-8


# --- loss -----------------------------------------------------------------------------------------------------------


def test_two_half_batches_give_the_gradients_of_the_whole(rows, tmp_path, monkeypatch):
    """
    Without dropout and without mixing, which takes speech from the other recordings of the batch. BatchNorm normalises
    with its batch's statistics and would differ by its nature, so it uses the running ones, as in evaluation.
    """
    monkeypatch.setattr(BatchNorm1d, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
    keys = [ExampleKey(0, (row,)) for row in range(8)]
    gradients, counts, losses = [], [], []
    for name, plan, steps in (("whole", [keys], 1), ("halves", [keys[:2], keys[2:]], 2)):
        record = Record()
        trainer = trainer_of(
            rows,
            tmp_path / name,
            config=NO_DROPOUT,
            plan=FixedPlan(plan),
            augmentation=None,
            callbacks=[record],
            max_steps=1,
            gradient_accumulation_steps=steps,
        )
        compute_loss, seen = trainer.compute_loss, []

        def spy(model, inputs, *args, num_items_in_batch, compute_loss=compute_loss, seen=seen, **kwargs):
            seen.append((int((inputs["labels"] != -100).sum()), int(num_items_in_batch)))
            return compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)

        monkeypatch.setattr(trainer, "compute_loss", spy)
        trainer.train()
        gradients += record.gradients
        counts.append(seen)
        losses.append(trainer.state.log_history[0]["loss"])
    (whole,), (first, second) = counts
    # every label counts, also the first of a recording, which a causal model would not predict
    assert whole[0] == whole[1] == first[1] == second[1] == first[0] + second[0] > 0
    assert first[0] != second[0]  # else a mean of means would pass
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max().item()
        assert (gradients[1][name] - gradient).abs().max().item() <= 1e-4 * scale + 1e-7, name


def test_labels_are_counted_from_the_first_frame(rows, tmp_path):
    trainer = trainer_of(rows, tmp_path)
    batches = [{"labels": torch.tensor([[0, 0, -100], [0, -100, -100]])}, {"labels": torch.tensor([[0, -100]])}]
    assert trainer._get_num_items_in_batch(batches, torch.device("cpu")) == 4


def test_nan_stops_and_names_recordings(rows, tmp_path):
    trainer = trainer_of(rows, tmp_path)
    with torch.no_grad():
        trainer.model.decoder.linear.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"the loss is nan at step 0; .*recordings: train\d, train\d"):
        trainer.train()


def test_training_log(rows, tmp_path):
    trainer = trainer_of(rows, tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0 <= line["accuracy"] <= 1 and 0 <= line["padding"] < 0.5
        assert 1 < line["audio_s_per_s"] < 1e5 and 0.1 < line["memory_gb"] < 20
        assert 0 < line["loss"] < 2 * math.log(64)
    durations = rows["train"]["duration"][:]
    padded = sum(2 * max(durations[key.rows[0]] for key in batch) for batch in trainer.train_sampler.plan(0))
    mean_padding = sum(line["padding"] for line in lines) / 2
    assert mean_padding == pytest.approx(1 - sum(durations) / padded, abs=0.03)
    kinds = [line.split()[2:4] for line in (tmp_path / "train.log").read_text().splitlines()]
    steps = [["train", "step=2"], ["eval", "step=2"], ["train", "step=4"], ["eval", "step=4"]]
    assert kinds == steps


# --- validation -----------------------------------------------------------------------------------------------------


def test_validation_is_a_direct_computation_over_the_set(rows, tmp_path):
    """One recording at a time gives the metrics of any batch size. (Without mixing, whose speech is of the batch.)"""
    metrics = {}
    for size in (1, 2, 5):
        trainer = trainer_of(rows, tmp_path, augmentation=None, per_device_eval_batch_size=size)
        metrics[size] = trainer.evaluate()

    dataset, _, collator = trainer.eval_sets["validation"]
    model = trainer.model.eval()
    loss = frames = correct = 0
    codes = []
    for row in range(len(dataset)):
        batch = collator([dataset[ExampleKey(0, (row,))]])
        with torch.no_grad():
            out = model(batch["input_features"], batch["attention_mask"], batch["target_features"],
                        batch["mask_time_indices"])  # fmt: skip
        masked = batch["labels"] != -100
        logits, targets = out.logits[masked].flatten(0, 1).double(), out.codes[masked].flatten()
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        frames += masked.sum().item()
        correct += (logits.argmax(-1) == targets).sum().item()
        codes.append(out.codes[out.attention_mask.bool()].flatten())
    shares = np.bincount(torch.cat(codes).numpy(), minlength=64) / len(torch.cat(codes))
    used = shares[shares > 0]
    expected = {
        "eval_validation_loss": loss / frames,
        "eval_validation_accuracy": correct / frames,
        "eval_validation_unigram_entropy": -(used * np.log(used)).sum(),
        "eval_validation_constant_accuracy": shares.max(),
        "eval_validation_codebook_coverage": len(used) / 64,
        "eval_validation_codebook_perplexity": math.exp(-(used * np.log(used)).sum()),
        "eval_validation_masked_frames": frames,
    }
    assert frames > 30
    for size, got in metrics.items():
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-5), (size, name)


def test_validation_is_the_same_every_time_and_leaves_the_random_state(rows, tmp_path):
    trainer = trainer_of(rows, tmp_path)
    first = without_times(trainer.evaluate())
    trainer.train_sampler.set_epoch(3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert without_times(trainer.evaluate()) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_no_masked_frame_gives_nan_metrics_and_no_crash(rows, tmp_path):
    metrics = trainer_of(rows, tmp_path, config={"mask_prob": 0.0}).evaluate()
    assert math.isnan(metrics["eval_validation_loss"]) and metrics["eval_validation_masked_frames"] == 0


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_checkpoints_are_whole_and_load(rows, tmp_path):
    trainer_of(rows, tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    folders = sorted(tmp_path.glob("checkpoint-*"))
    assert [folder.name for folder in folders] == ["checkpoint-2", "checkpoint-4"]
    for folder in folders:
        model = NestForPreTraining.from_pretrained(folder)
        encoder = NestModel.from_pretrained(folder)
        assert torch.equal(encoder.layers[0].norm_out.weight, model.encoder.layers[0].norm_out.weight)
        assert NestFeatureExtractor.from_pretrained(folder).to_dict() == NestFeatureExtractor().to_dict()


@pytest.mark.parametrize("step", ["save_model", "_save_rng_state", "_rotate_checkpoints"])
def test_a_save_that_dies_leaves_a_whole_checkpoint(rows, tmp_path, monkeypatch, step):
    """Wherever a save ends, the newest checkpoint is whole, and what is left of the save is removed on resume."""
    trainer = trainer_of(rows, tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)
    original = getattr(trainer, step)

    def dies(*args, **kwargs):
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, step, dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    newest = last_complete_checkpoint(str(tmp_path))
    assert newest == str(tmp_path / ("checkpoint-4" if step == "_rotate_checkpoints" else "checkpoint-2"))
    assert not list(tmp_path.glob("*.incomplete"))
    assert Path(newest, "rng_state.pth").is_file() and Path(newest, "optimizer.pt").is_file()


def test_a_deletion_that_dies_leaves_nothing_that_looks_like_a_checkpoint(rows, tmp_path, monkeypatch):
    trainer = trainer_of(rows, tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)

    def dies(folder):
        Path(folder, "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", dies)
        trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*") if path.suffix != ".incomplete"} == {"checkpoint-4"}
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    assert not list(tmp_path.glob("*.incomplete"))


def test_no_checkpoint_to_resume_from(tmp_path):
    assert last_complete_checkpoint(str(tmp_path / "absent")) is None
    (tmp_path / "checkpoint-7.incomplete").mkdir()
    assert last_complete_checkpoint(str(tmp_path)) is None


def test_rotation_keeps_the_best_checkpoint(rows, tmp_path, monkeypatch):
    best = {"save_total_limit": 2, "load_best_model_at_end": True, "metric_for_best_model": "eval_validation_loss"}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(rows, tmp_path, max_steps=5, **best, **steps)
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.0])  # the second is best
    loop = trainer.evaluation_loop

    def with_chosen_loss(*args, **kwargs):
        output = loop(*args, **kwargs)
        output.metrics["eval_validation_loss"] = next(losses)
        return output

    monkeypatch.setattr(trainer, "evaluation_loop", with_chosen_loss)
    trainer.train()
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert_same_weights(trainer.model, NestForPreTraining.from_pretrained(tmp_path / "checkpoint-2"))


def test_a_checkpoint_of_another_model_is_refused(rows, tmp_path):
    trainer_of(rows, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match="does not fit the model: encoder.layers.1"):
        trainer_of(rows, tmp_path, config={"num_hidden_layers": 2}).train(str(tmp_path / "checkpoint-1"))


def test_the_audio_report_survives_a_resume(rows, tmp_path):
    trainer = trainer_of(rows, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.audio_report[("stereo", "left")] = "2 channels averaged"
    trainer.train()
    trainer = trainer_of(rows, tmp_path, max_steps=2)
    trainer.train(str(tmp_path / "checkpoint-1"))
    assert trainer.gather_audio_report() == [("stereo", "left", "2 channels averaged")]


# --- resume ---------------------------------------------------------------------------------------------------------

# 3.5 epochs of 4 batches in steps of 2 batches: 7 updates, the last in the middle of an epoch
RUN = {"max_steps": 7, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1,
       "eval_strategy": "steps", "eval_steps": 3}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = trainer_of(rows, folder, **RUN)
    trainer.train()
    return trainer, without_times(trainer.evaluate())


def without_times(metrics: dict) -> dict:
    return {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_per_second"))}


def assert_same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "stop", [1, 4, 5, 7], ids=["in epoch 0", "between two epochs", "in a later epoch", "after the last step"]
)
def test_resume_gives_the_bits_of_the_uninterrupted_run(rows, tmp_path, uninterrupted, stop, workers):
    expected, expected_metrics = uninterrupted
    options = {**RUN, "dataloader_num_workers": workers}
    stopped = trainer_of(rows, tmp_path, callbacks=[StopAfterSave(stop)], **options)
    stopped.train()
    assert stopped.state.global_step == stop
    torch.manual_seed(1234)  # nothing may come from what the process did before

    trainer = trainer_of(rows, tmp_path, **options)
    trainer.train(last_complete_checkpoint(str(tmp_path)))
    assert trainer.state.global_step == expected.state.global_step == 7
    assert_same_weights(trainer.model, expected.model)
    assert without_times(trainer.evaluate()) == expected_metrics
    losses = [[(line["step"], line["loss"]) for line in t.state.log_history if "loss" in line]
              for t in (trainer, expected)]  # fmt: skip
    assert losses[0] == losses[1]
    states = [t.optimizer.state_dict()["state"] for t in (trainer, expected)]
    for key, state in states[1].items() if stop < 7 else ():
        assert all(torch.equal(torch.as_tensor(states[0][key][k]), torch.as_tensor(state[k])) for k in state)


def test_checkpoint_lists_the_audio_report(uninterrupted):
    folder = Path(uninterrupted[0].args.output_dir, "checkpoint-7")
    assert json.loads((folder / "audio_report.json").read_text()) == []
