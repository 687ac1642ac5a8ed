"""The quantizer: NeMo's tokens, its definition in a few lines, and a precision that nothing may lower."""

import copy

import golden
import pytest
import torch
from torch.nn import functional as F

from nest_hf import NestConfig, NestForPreTraining
from nest_hf.quantizer import RandomProjectionQuantizer


def quantizer(seed: int = 0, **config) -> RandomProjectionQuantizer:
    torch.manual_seed(seed)
    module = RandomProjectionQuantizer(NestConfig.from_preset("tiny", **config))
    module.reset_parameters()
    return module


def features(batch: int = 2, frames: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, 80, generator=torch.Generator().manual_seed(seed))


def reference(module: RandomProjectionQuantizer, x: torch.Tensor) -> torch.Tensor:
    """arXiv 2202.01855, section 3.1, in float64: the nearest code of the normalised projection."""
    stacked = x.double().reshape(x.shape[0], -1, 8 * 80)
    projected = (stacked @ module.projection.double().T).unflatten(-1, (module.codebooks.shape[0], -1))
    distances = F.normalize(projected, dim=-1)[..., None, :] - module.codebooks  # (B, T', H, C, K)
    return distances.norm(dim=-1).argmin(-1)


@pytest.mark.parametrize("case", golden.CASES)
def test_tokens_equal_nemos(case):
    inputs, tokens = golden.inputs(case), golden.tensors(f"{case}/io")["tokens"]
    assert torch.equal(golden.model(case).quantizer(inputs["target_features"]), tokens)


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_codes_are_the_nearest(num_codebooks):
    module = quantizer(num_codebooks=num_codebooks, codebook_size=512)
    codes = module(features())
    assert codes.shape == (2, 8, num_codebooks) and codes.dtype == torch.int64
    assert torch.equal(codes, reference(module, features()))
    assert codes.unique().numel() > 10


def test_l2_of_codes_that_are_no_unit_vectors():
    module = quantizer(codebook_size=512)
    module.codebooks *= torch.rand(module.codebooks.shape[:2])[..., None] + 0.5
    assert torch.equal(module(features()), reference(module, features()))


def test_cosine_ignores_the_length_of_the_codes():
    module = quantizer(quantizer_distance="cosine", codebook_size=512)
    expected = reference(module, features())  # of unit vectors the nearest is the most similar
    module.codebooks *= torch.rand(module.codebooks.shape[:2])[..., None] + 0.5
    assert torch.equal(module(features()), expected)


def test_input_norm_ignores_level_and_gain():
    module = quantizer(quantizer_input_norm=True)
    stacked = features().double().reshape(2, 8, 640)
    stacked = (stacked - stacked.mean(-1, keepdim=True)) / stacked.std(-1, correction=0, keepdim=True)
    assert torch.equal(module(features()), reference(module, stacked.reshape(2, 64, 80)))
    assert torch.equal(module(features()), module(3 * features() + 2))
    assert not torch.equal(module(features()), quantizer()(features()))


@pytest.mark.parametrize("init, bound", [("xavier_normal", None), ("xavier_uniform", (6 / (16 + 640)) ** 0.5)])
def test_initial_projection_and_codes(init, bound):
    module = quantizer(quantizer_init=init)
    torch.testing.assert_close(module.projection.std().item(), (2 / (16 + 640)) ** 0.5, rtol=0.05, atol=0)
    if bound:
        assert 0.99 * bound < module.projection.abs().max() <= bound
    else:
        assert module.projection.abs().max() > 3 * module.projection.std()
    torch.testing.assert_close(module.codebooks.norm(dim=-1), torch.ones(1, 64, dtype=torch.float64))


def test_nothing_is_trained():
    assert not list(quantizer().parameters())
    assert quantizer()(features().requires_grad_()).grad_fn is None


@pytest.mark.parametrize("lower", ["half", "bfloat16", "double"])
def test_precision_stays_when_the_model_changes_its_own(lower):
    model = NestForPreTraining(NestConfig.from_preset("tiny", codebook_size=2048)).eval()
    codes = model.quantizer(features())
    model = getattr(model, lower)()
    assert model.encoder.subsampling.linear.weight.dtype != torch.float32
    assert model.quantizer.projection.dtype == torch.float32
    assert model.quantizer.codebooks.dtype == torch.float64
    assert torch.equal(model.quantizer(features()), codes)


def test_precision_stays_under_autocast():
    module = quantizer(codebook_size=2048)
    many = features(batch=8, frames=1600)  # in bfloat16 about 0.5 % of the codes change
    codes = module(many)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(many), codes)


def test_precision_stays_in_from_pretrained(tmp_path):
    model = NestForPreTraining(NestConfig.from_preset("tiny"))
    model.save_pretrained(tmp_path)
    loaded = NestForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.decoder.linear.weight.dtype == torch.bfloat16
    for name, buffer in model.quantizer.named_buffers():
        assert torch.equal(loaded.quantizer.get_buffer(name), buffer), name
        assert loaded.quantizer.get_buffer(name).dtype == buffer.dtype, name


def test_device_moves_keep_precision():
    module = quantizer().to("meta")
    assert (module.projection.device.type, module.codebooks.device.type) == ("meta", "meta")
    assert (module.projection.dtype, module.codebooks.dtype) == (torch.float32, torch.float64)
    module = module.to_empty(device="cpu").to("cpu", torch.bfloat16)
    assert (module.projection.dtype, module.codebooks.dtype) == (torch.float32, torch.float64)


def test_deepcopy():
    module = quantizer()
    copied = copy.deepcopy(module)
    assert copied.codebooks.data_ptr() != module.codebooks.data_ptr()
    assert torch.equal(copied(features()), module(features()))


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_chunks_do_not_change_codes(rows, monkeypatch):
    module = quantizer(num_codebooks=2)
    codes = module(features())
    monkeypatch.setattr(RandomProjectionQuantizer, "ROWS_PER_CHUNK", rows)
    assert torch.equal(module(features()), codes)


def test_frames_that_do_not_stack_are_refused():
    with pytest.raises(ValueError, match="`target_features` has 61 frames, which is not a multiple of 8"):
        quantizer()(features(frames=61))
