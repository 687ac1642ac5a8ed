"""The longest batch of a plan, tried before training: does it fit, and how long does it take?"""

import copy
import gc
import logging
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """
    What a step on the longest batch needs.

    Attributes:
        size (`float`): Padded size of the batch, in the unit of the plan.
        num_examples (`int`): Recordings in it.
        peak_gb (`float`): Peak memory in GiB of forward, backward and the optimizer's state: allocated on a GPU, else
            resident.
        step_s (`float`): Seconds of forward and backward.
    """

    size: float
    num_examples: int
    peak_gb: float
    step_s: float


def probe_longest(trainer, *, unit: str, max_memory_gb: float | None = None) -> Probe:
    """
    Runs forward and backward of the longest batch of the first epoch, and leaves everything as it was: weights,
    gradients, buffers (BatchNorm's statistics), random states. A quarter of the batch goes first, to warm up.

    Args:
        trainer ([`PlannedTrainer`]): With a plan, before `train`.
        unit (`str`): Of the plan, for messages.
        max_memory_gb (`float`, *optional*): GiB that must do.

    Raises:
        ValueError: if the batch does not fit; it names the largest budget that does, by way of smaller batches.
    """
    sampler = trainer.train_sampler
    batch = max(sampler.plan(0), key=lambda batch: _padded_size(sampler, batch))
    found = small = None
    if len(batch) > 1:  # first: it warms up, and a process keeps what the larger one takes
        part = batch[: -(-len(batch) // 4)]
        small = _run(trainer, part, _padded_size(sampler, part))
    try:
        found = _run(trainer, batch, _padded_size(sampler, batch))
    except torch.OutOfMemoryError:
        pass  # what it took is only free after this block
    limit, whose = max_memory_gb, "`max_memory_gb` is"
    if found is None:
        gc.collect()
        torch.cuda.empty_cache()
        there_is = torch.cuda.get_device_properties(trainer.args.device).total_memory / 2**30
        if limit is None or there_is < limit:
            limit, whose = there_is, "the GPU has"
    else:
        logger.info(
            "longest batch: %d recordings, %.6g padded %s: %.2f GB at the peak, %.2f s forward and backward",
            found.num_examples, found.size, unit, found.peak_gb, found.step_s,
        )  # fmt: skip
        if limit is None or found.peak_gb <= limit:
            return found
    need = f"{found.peak_gb:.2f} GB" if found else "more than there is"
    largest = _largest_that_fits(trainer, batch, [small, found], limit)
    longest = max(sampler.lengths[list(key.rows)].sum() for key in batch)
    name = "`batch_budget`" if sampler.budget else "`per_device_train_batch_size`"
    fits = largest if sampler.budget else largest // longest
    if largest < longest:
        advice = f"not even its longest recording ({longest:.6g} {unit}) fits: lower `max_duration_s`, or set"
        advice += " `activation_checkpointing`"
    else:
        advice = f"the largest {name} that fits is about {fits:.6g}, or set `activation_checkpointing`"
    raise ValueError(
        f"the longest batch ({len(batch)} recordings, {_padded_size(sampler, batch):.6g} padded {unit}) needs {need}, "
        f"{whose} {limit:.6g}; {advice}."
    )


def _padded_size(sampler, batch) -> float:
    return len(batch) * max(sampler.lengths[list(key.rows)].sum() for key in batch)


def _largest_that_fits(trainer, batch, probes: list[Probe | None], limit_gb: float) -> float:
    """Padded size, on a straight line through the memory of two batches; a twentieth is kept free."""
    probes = [probe for probe in probes if probe is not None]
    for part in (batch[: -(-len(batch) // 4)], batch[: -(-len(batch) // 2)]):
        if len(probes) < 2 and len(part) < len(batch) and len(part) not in [p.num_examples for p in probes]:
            probes.append(_run(trainer, part, _padded_size(trainer.train_sampler, part)))
    if len(probes) < 2:
        return 0.0
    (low_gb, low), (high_gb, high) = sorted((probe.peak_gb, probe.size) for probe in probes)
    slope = (high_gb - low_gb) / (high - low)
    if slope <= 0:
        return low if low_gb <= limit_gb else 0.0
    return max(0.0, 0.95 * (low + (limit_gb - low_gb) / slope))


def _run(trainer, batch, size: float) -> Probe:
    args, model = trainer.args, trainer.model
    model.to(args.device)
    inputs = trainer.train_collator([trainer.train_dataset[key] for key in batch])
    with _unchanged(trainer):
        model.train()
        inputs = trainer._prepare_inputs(inputs)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if args.gradient_accumulation_steps > 1:  # all but the first of them find gradients
            for p in trainable:
                p.grad = torch.zeros_like(p)
        started = time.perf_counter()
        with _PeakMemory(args.device) as memory:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
            if args.device.type == "cuda":
                torch.cuda.synchronize(args.device)
        seconds = time.perf_counter() - started
        state = 2 * sum(p.numel() * p.element_size() for p in trainable)  # AdamW's two moments
        return Probe(size, len(batch), memory.peak_gb + state / 2**30, seconds)


@contextmanager
def _unchanged(trainer):
    """Puts back random states, buffers, modes, gradients and what the trainer counts."""
    model, device = trainer.model, trainer.args.device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    report = copy.copy(trainer.audio_report)
    checkpointing = trainer.args.activation_checkpointing
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if checkpointing:
            model.activation_checkpointing_disable()
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for module, training in modes.items():
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, device)
        trainer.audio_report = report
        trainer._reset_sums()


class _PeakMemory:
    """Peak memory of a block in GiB: what CUDA allocated, or what was resident, looked at every 2 ms."""

    def __init__(self, device: torch.device):
        self.device = device
        self.peak_gb = 0.0

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        if self.device.type == "cuda":
            self.peak_gb = torch.cuda.max_memory_allocated(self.device) / 2**30
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            last = self._done.wait(0.002)
            self.peak_gb = max(self.peak_gb, process.memory_info().rss / 2**30)
            if last:
                return
