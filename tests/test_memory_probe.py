"""The probe: what it measures, and what it says where the batch does not fit."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nest_hf import memory_probe
from nest_hf.data import TokenBudgetBatchSampler


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.found_gradients = []

    def forward(self, x):
        self.found_gradients.append([p.grad is not None for p in self.parameters()])
        return self.frozen(self.linear(x)).sum()


def trainer_of(lengths, *, accumulation=1, **plan):
    args = SimpleNamespace(
        device=torch.device("cpu"), activation_checkpointing=False, gradient_accumulation_steps=accumulation
    )
    trainer = SimpleNamespace(args=args, model=Model(), audio_report={}, _reset_sums=lambda: None)
    trainer.train_sampler = TokenBudgetBatchSampler(lengths, **{"shuffle": False, **plan})
    trainer.train_dataset = {key: torch.ones(2) for batch in trainer.train_sampler.plan(0) for key in batch}
    trainer.train_collator = torch.stack
    trainer._prepare_inputs = lambda inputs: inputs
    trainer.compute_loss_context_manager = torch.enable_grad
    trainer.compute_loss = lambda model, inputs: model(inputs)
    return trainer


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_padded_batch_is_tried_after_a_quarter_of_it(seed):
    trainer, seen = trainer_of([1, 1, 1, 1, 2, 2, 9, 1], batch_size=4, shuffle=True, seed=seed), []
    trainer.compute_loss = lambda model, inputs: seen.append(len(inputs)) or model(inputs)
    found = memory_probe.probe_longest(trainer, unit="seconds")
    assert (seen, found.num_examples, found.size) == ([1, 4], 4, 36.0)


def test_gradients_that_wait_for_more_batches_count():
    for accumulation, waiting in ((1, False), (2, True)):
        trainer = trainer_of([1.0, 1.0], accumulation=accumulation, batch_size=2)
        memory_probe.probe_longest(trainer, unit="seconds")
        assert trainer.model.found_gradients == [[waiting, waiting, False, False]] * 2
        assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("given", "limit"), [(None, "needs more than there is, the GPU has 2;"), (1.5, "`max_memory_gb` is 1.5;")]
)
def test_a_gpu_that_runs_out_of_memory_is_answered_with_what_fits(monkeypatch, given, limit):
    """1 GB and 0.1 GB per second of audio, on a GPU of 2 GB."""

    def run(trainer, batch, size):
        if 1 + 0.1 * size > 2:
            raise torch.OutOfMemoryError("no memory")
        return memory_probe.Probe(size, len(batch), 1 + 0.1 * size, 1.0)

    monkeypatch.setattr(memory_probe, "_run", run)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    there = SimpleNamespace(total_memory=2 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: there)
    trainer = trainer_of([1.0] * 16, budget=16.0)
    fits = 0.95 * (10 if given is None else 5)
    with pytest.raises(ValueError, match=f"{limit} the largest `batch_budget` that fits is about {fits:g},"):
        memory_probe.probe_longest(trainer, unit="seconds", max_memory_gb=given)
