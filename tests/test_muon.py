"""Muon: orthogonal updates, torch's own AdamW and Muon as references, which parameters it moves, refusals."""

import copy

import pytest
import torch
from spoken_tones import make_utterances
from test_finetuning import plan_of, recogniser, trainer_of
from torch import nn

from nest_hf import NestConfig
from nest_hf.data.labelled import load_labelled
from nest_hf.finetuning import FinetuneTrainer
from nest_hf.finetuning_arguments import FinetuneTrainingArguments
from nest_hf.modeling_nest import NestForPreTraining
from nest_hf.muon import COEFFICIENTS, NUM_ITERATIONS, Muon, orthogonalize, with_muon


def matrices(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(6, 6), (6, 10), (10, 6), (6, 24), (24, 6)])
def test_singular_values_go_to_one_and_singular_vectors_stay(shape):
    updates = matrices(5, *shape, dtype=torch.float64) * 10.0 ** torch.arange(-6, 4, 2)[:, None, None]
    u, s, vh = torch.linalg.svd(updates, full_matrices=False)
    a, b, c = COEFFICIENTS
    x = s / updates.norm(dim=(-2, -1))[:, None]
    heard = x > 0.05
    for _ in range(NUM_ITERATIONS):
        x = a * x + b * x**3 + c * x**5  # of a product of matrices with their own transposes
    made = orthogonalize(updates)
    assert torch.allclose(made, u @ torch.diag_embed(x) @ vh, atol=1e-9)
    assert heard.sum() > 15 and ((x[heard] > 0.65) & (x[heard] < 1.25)).all()
    alone = torch.cat([orthogonalize(update[None]) for update in updates])
    assert torch.allclose(made, alone, atol=1e-12)


def test_a_zero_gradient_moves_nothing():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def steps(make, shape, number=5, decay=0.1) -> torch.Tensor:
    p = nn.Parameter(matrices(*shape))
    optimizer = make(p, decay)
    for seed in range(number):
        p.grad = matrices(*shape, seed=seed + 1)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (16, 16)])
def test_a_matrix_moves_as_by_torchs_muon(shape):
    def ours(p, decay):
        return Muon([{"params": [p], "muon": True}], lr=0.1, weight_decay=decay)

    def theirs(p, decay):
        return torch.optim.Muon([p], lr=0.1, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    made, expected = steps(ours, shape), steps(theirs, shape)
    moved = (expected - matrices(*shape)).abs().mean()
    assert (made - expected).abs().mean() < 0.02 * moved  # torch's computes in bfloat16
    kernel = nn.Parameter(matrices(*shape)[..., None])
    optimizer = Muon([{"params": [kernel], "muon": True}], lr=0.1, weight_decay=0.1)
    for seed in range(5):
        kernel.grad = matrices(*shape, seed=seed + 1)[..., None]
        optimizer.step()
    assert torch.allclose(kernel[..., 0], made, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_everything_else_moves_as_by_adamw(fused):
    def ours(p, decay):
        other = nn.Parameter(matrices(4, 4))
        other.grad = matrices(4, 4)
        groups = [{"params": [other], "muon": True}, {"params": [p], "weight_decay": decay}]
        return Muon(groups, lr=0.1, betas=(0.9, 0.98), fused=fused)

    def theirs(p, decay):
        return torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.98), weight_decay=decay, fused=fused)

    assert torch.equal(steps(ours, (7, 3)), steps(theirs, (7, 3)))


def test_a_loaded_state_goes_on_as_the_saved_one():
    def made(seed):
        matrix, bias = nn.Parameter(matrices(6, 4, seed=seed)), nn.Parameter(matrices(6, seed=seed))
        return [matrix, bias], Muon([{"params": [matrix], "muon": True}, {"params": [bias]}], lr=0.1, fused=True)

    def step(params, optimizer, seed):
        for p in params:
            p.grad = matrices(*p.shape, seed=seed)
        optimizer.step()

    params, optimizer = made(0)
    step(params, optimizer, 1)
    others, loaded = made(5)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, other in zip(params, others, strict=True):
        other.data.copy_(p.data)
    step(params, optimizer, 2)
    step(others, loaded, 2)
    assert all(torch.equal(p, other) for p, other in zip(params, others, strict=True))


def test_what_overflows_in_fp16_moves_nothing():
    matrix, bias = nn.Parameter(matrices(6, 4)), nn.Parameter(matrices(6))
    optimizer = Muon([{"params": [matrix], "muon": True}, {"params": [bias]}], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(grad: float):
        scaler.scale((matrix.sum() + bias.sum()) * grad).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(float("inf"))
    assert torch.equal(matrix, matrices(6, 4)) and torch.equal(bias, matrices(6))
    step(1.0)
    assert not torch.equal(matrix, matrices(6, 4)) and matrix.isfinite().all() and bias.isfinite().all()


def names_of(model, groups, muon: bool) -> set[str]:
    chosen = {id(p) for group in groups if group["muon"] == muon for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


def is_product(module: nn.Module) -> bool:
    """Whether all of a module is one product of each frame with a matrix."""
    is_kernel = isinstance(module, nn.Conv1d | nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1
    return is_kernel or isinstance(module, nn.Linear)


def test_matrices_of_layers_are_muons_and_nothing_else():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "subsampling_conv_channels": 8}
    nest = NestForPreTraining(NestConfig.from_preset("tiny", **sizes))
    for model in (nest, recogniser("asr")[0], recogniser("ctc")[0]):
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = with_muon([{"params": trained[::2], "weight_decay": 0.1}, {"params": trained[1::2]}], model)
        muon, rest = names_of(model, groups, True), names_of(model, groups, False)
        assert not muon & rest and muon | rest == {name for name, p in model.named_parameters() if p.requires_grad}
        in_layers = [(name, module) for name, module in model.named_modules() if ".layers." in f".{name}."]
        expected = {f"{name}.weight" for name, module in in_layers if is_product(module)}
        assert len(expected) > 8 and muon == expected
        decayed = {id(p) for group in groups if group.get("weight_decay") for p in group["params"]}
        assert decayed == {id(p) for p in trained[::2]}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    return load_labelled(make_utterances(folder / "train", 8, length=None), name="train")


def test_the_trainer_uses_it_and_keeps_what_is_not_decayed(labelled, tmp_path):
    trainer = trainer_of("ctc", labelled, tmp_path, plan_of(range(8)), use_muon=True, max_steps=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is Muon and len(optimizer.param_groups) == 3  # biases and norms hold no matrix
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0]
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert names_of(trainer.model, optimizer.param_groups, True) <= changed


def test_another_optimizer_and_divided_matrices_are_refused(labelled, tmp_path, monkeypatch):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "use_muon": True}
    with pytest.raises(ValueError, match="`use_muon` goes with AdamW, `optim` is adafactor"):
        FinetuneTrainingArguments(**options, optim="adafactor")
    create = FinetuneTrainer.create_accelerator_and_postprocess

    def divided(self):
        create(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(FinetuneTrainer, "create_accelerator_and_postprocess", divided)
    with pytest.raises(ValueError, match="`use_muon` needs whole matrices, which FSDP and DeepSpeed divide"):
        trainer_of("ctc", labelled, tmp_path, plan_of(range(8)), use_muon=True)


def test_where_no_matrix_is_trained_it_is_refused():
    model = recogniser("ctc")[0]
    others = [p for name, p in model.named_parameters() if "layers." not in name]
    with pytest.raises(ValueError, match="`use_muon` has no effect: no matrix of a hidden layer"):
        with_muon([{"params": others}], model)
