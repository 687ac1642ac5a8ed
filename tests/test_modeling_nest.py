"""The model against NeMo's stored numbers, and one property a test: invariances, gradients, precision, hand-over."""

import functools

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ParakeetCTCConfig, ParakeetEncoder, ParakeetEncoderConfig, ParakeetForCTC
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderSubsamplingConv2D

from nest_hf import NestConfig, NestForCTC, NestForPreTraining, NestModel, aggregate_layers, cpu_ops, modeling_nest
from nest_hf.cpu_ops import dropout, linear
from nest_hf.modeling_nest import NestSubsampling
from nest_hf.nemo_keys import nemo_name, our_name

NO_DROPOUT = dict.fromkeys(("dropout", "hidden_dropout", "activation_dropout", "attention_dropout"), 0.0)


def tiny(cls=NestForPreTraining, seed: int = 0, **config):
    torch.manual_seed(seed)
    return cls(NestConfig.from_preset("tiny", **config)).eval()


def batch(frames=(96, 61, 40), seed: int = 1, **extra) -> dict[str, torch.Tensor]:
    """Features of random recordings; frames 8 to 40 of each are masked."""
    generator = torch.Generator().manual_seed(seed)
    attention_mask = golden.valid(torch.tensor(frames), 96)
    mask = torch.zeros(len(frames), 96, dtype=torch.bool)
    mask[:, 8:40] = True
    return {
        "input_features": torch.randn(len(frames), 96, 80, generator=generator) * attention_mask[..., None],
        "attention_mask": attention_mask,
        "mask_time_indices": mask,
        **extra,
    }


def gradients(model, **inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict, expected: dict, *, relative: float = 1e-4):
    """Relative to each tensor's norm; the floor is for those that are 0 in exact arithmetic (biases of the keys)."""
    assert ours.keys() == expected.keys()
    floor = 1e-6 * torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (ours[name] - gradient).norm()
        assert error <= relative * gradient.norm() + floor, f"{name}: {error} of {gradient.norm()}"


# --- NeMo's numbers --------------------------------------------------------------------------------------------------


@functools.cache
def golden_output(case: str, attention: str):
    model = golden.model(case)
    model.set_attn_implementation(attention)
    assert model.encoder.config._attn_implementation == attention
    with torch.no_grad():
        return model(**golden.inputs(case), output_hidden_states=True)


on_goldens = pytest.mark.parametrize(
    "case, attention", [(case, attention) for case in golden.CASES for attention in ("eager", "sdpa")]
)


@on_goldens
def test_encoder_equals_nemos_layer_by_layer(case, attention):
    io, out = golden.tensors(f"{case}/io"), golden_output(case, attention)
    valid = golden.valid(io["encoded_lengths"], 24)
    assert torch.equal(out.attention_mask, valid.int())
    scale = golden.model(case).encoder.input_scale
    torch.testing.assert_close(out.hidden_states[0][valid] / scale, io["pre_encode_masked"][valid], atol=1e-5, rtol=0)
    for index, hidden_states in enumerate(out.hidden_states[1:]):
        expected = io[f"layer{index}_masked"]
        torch.testing.assert_close(hidden_states[valid], expected[valid], atol=1e-5, rtol=0)
    encoded = io["encoded_masked"].transpose(1, 2)
    torch.testing.assert_close(out.hidden_states[-1][valid], encoded[valid], atol=1e-5, rtol=0)


@on_goldens
def test_predictions_tokens_and_loss_equal_nemos(case, attention):
    io, facts, out = golden.tensors(f"{case}/io"), golden.facts(f"{case}/summary"), golden_output(case, attention)
    valid = golden.valid(io["encoded_lengths"], 24)
    log_probs = out.logits.log_softmax(-1).transpose(2, 3)  # (B, T', H, C) -> NeMo's (B, T', C, H)
    torch.testing.assert_close(log_probs[valid], io["log_probs_masked"][valid], atol=1e-5, rtol=0)
    assert torch.equal(out.codes, io["tokens"])
    assert torch.equal(out.labels != -100, io["loss_frame_mask"])
    assert out.loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    for book, expected in enumerate(facts["loss_per_book"]):
        in_loss = io["loss_frame_mask"]
        loss = F.cross_entropy(out.logits[in_loss][:, book], out.codes[in_loss][:, book])
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    correct = io["log_probs_masked"].argmax(2) == io["tokens"]
    assert out.num_correct == correct[io["loss_frame_mask"]].sum()


@on_goldens
def test_gradients_equal_nemos(case, attention):
    model, stored = golden.model(case), golden.tensors(f"{case}/grads")
    model.set_attn_implementation(attention)
    books = model.config.num_codebooks
    expected = {our_name(name): gradient for name, gradient in stored.items()}
    for name in (
        "decoder.linear.weight",
        "decoder.linear.bias",
    ):  # NeMo's rows: class * H + book; ours: book * C + class
        rows = expected[name].squeeze(-1) if name.endswith("weight") else expected[name]
        expected[name] = rows.unflatten(0, (-1, books)).transpose(0, 1).flatten(0, 1)
    assert_same_gradients(gradients(model, **golden.inputs(case)), expected)


@pytest.mark.parametrize("case", golden.CASES)
def test_training_follows_nemos_trajectory(case):
    """Five steps of AdamW and Noam, train mode (BatchNorm on batch statistics, padding included), no dropout."""
    facts, io = golden.facts(f"{case}/summary")["train"], golden.tensors(f"{case}/io")
    trained = golden.model(case)
    model = NestForPreTraining(NestConfig(**{**trained.config.to_dict(), **NO_DROPOUT})).train()
    model.load_state_dict(trained.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=1e-3)
    for index in range(5):
        step = max(1, index)
        lr = 0.5 * model.config.hidden_size**-0.5 * min(step**-0.5, step * 100**-1.5)
        assert lr == pytest.approx(facts["lr"][index], rel=1e-6)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = model(**golden.inputs(case)).loss
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        assert loss.item() == pytest.approx(facts["loss"][index], rel=1e-4)
        assert norm.item() == pytest.approx(facts["grad_norm"][index], rel=1e-4)
        optimizer.step()
    for name, tensor in model.state_dict().items():
        if nemo_name(name) in facts["param_norm_after"]:
            expected = facts["param_norm_after"][nemo_name(name)]
            # A bias in front of a softmax over keys or of BatchNorm has no gradient but rounding, which AdamW blows up
            relative = 1e-3 if name.endswith(("k_proj.bias", "depthwise_conv.bias")) else 1e-4
            assert tensor.norm().item() == pytest.approx(expected, rel=relative), name
    block = model.encoder.layers[0]
    for ours, theirs, relative in (
        # holds that bias's wandering too; the model without biases shows the bar
        (block.conv.norm.running_mean, io["train_bn0_running_mean"], 1e-3 if model.config.convolution_bias else 1e-4),
        (block.conv.norm.running_var, io["train_bn0_running_var"], 1e-4),
        (block.feed_forward1.linear1.weight, io["train_layer0_ff1_weight"], 1e-4),
    ):
        assert (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.parametrize("case", golden.CASES)
def test_aggregations_equal_nemos(case):
    io, inputs = golden.tensors(f"{case}/io"), golden.inputs(case)
    with torch.no_grad():
        out = golden.model(case).encoder(
            inputs["target_features"], inputs["attention_mask"], output_hidden_states=True
        )
    layers, valid = out.hidden_states[1:], golden.valid(io["encoded_lengths"], 24)
    assert len(layers) == 3
    results = {"mlf_l02_0": layers[0], "mlf_l02_1": layers[2]}
    for mode in ("cat", "sum", "mean", "max", "min", "weighted_sum"):
        weights = torch.tensor([0.5, -0.25, 0.75]) if mode == "weighted_sum" else None
        results[f"mlf_agg_{mode}"] = aggregate_layers(layers, mode, weights)
    for name, ours in results.items():
        torch.testing.assert_close(ours[valid], io[name].transpose(1, 2)[valid], atol=1e-5, rtol=0)
    torch.testing.assert_close(aggregate_layers(layers, "weighted_sum"), aggregate_layers(layers, "mean"))
    with pytest.raises(ValueError, match="`weights` has 2 entries for 3 layers"):
        aggregate_layers(layers, "weighted_sum", torch.ones(2))
    with pytest.raises(ValueError, match="`mode` is 'median'"):
        aggregate_layers(layers, "median")


def test_initial_weights_are_distributed_as_nemos():
    """Mean, deviation and extremes of every parameter within five standard errors of two samples."""
    torch.manual_seed(0)
    state = NestForPreTraining(NestConfig.from_preset("medium")).state_dict()
    stats = golden.facts("init_stats")["medium"]
    for name, tensor in state.items():
        layer = name.split(".")[2] if name.startswith("encoder.layers.") else "0"
        row = stats.get(
            nemo_name(name.replace(f"layers.{layer}.", "layers.0.")) if "layers" in name else nemo_name(name)
        )
        if row is None:
            assert name.endswith(("running_mean", "running_var", "num_batches_tracked")), name
            continue
        count, std = tensor.numel(), row["std"]
        tensor = tensor.double()
        assert abs(tensor.mean() - row["mean"]) <= 5 * std * (2 / count) ** 0.5, name
        assert abs(tensor.std() - std) <= 5 * std * (1 / count) ** 0.5, name
        # the gap between the largest of n uniform values and the bound is exponential with mean range / n
        normal = nemo_name(name) in ("quantizer.codebooks", "quantizer.proj.weight", "mask_processor.mask_embedding")
        slack = 2.5 * std if normal else 12 * (row["max"] - row["min"]) / count
        assert abs(tensor.min() - row["min"]) <= slack and abs(tensor.max() - row["max"]) <= slack, name


def test_size_of_presets():
    counts = golden.facts("init_stats")["parameter_counts"]
    for preset, name in {
        "small": "small14M",
        "medium": "medium32M",
        "large": "large120M",
        "xlarge": "xlarge616M",
        "xxlarge": "xxlarge1.2B",
    }.items():
        with torch.device("meta"):
            model = NestForPreTraining(NestConfig.from_preset(preset))
        # NeMo counts quantizer and mask embedding as (frozen) parameters
        frozen = sum(b.numel() for b in model.quantizer.buffers()) + model.mask_embedding.numel()
        trainable = sum(p.numel() for p in model.parameters())
        assert trainable + frozen == counts[name]["total"]
        assert trainable == counts[name].get("trainable", trainable)
        assert sum(p.numel() for p in model.encoder.parameters()) == counts[name]["encoder"]


# --- invariances -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_batch_equals_singles_and_padding_is_ignored():
    model, inputs = tiny(NestModel), batch()
    expected = model(inputs["input_features"], inputs["attention_mask"])
    for row, frames in enumerate((96, 61, 40)):
        encoded_frames = -(-frames // 8)
        single = model(inputs["input_features"][row : row + 1, :frames])  # no padding, no mask
        padded = torch.full((1, 160, 80), 7.0)  # what lies in the padding does not matter
        padded[0, :frames] = inputs["input_features"][row, :frames]
        longer = model(padded, golden.valid(torch.tensor([frames]), 160))
        assert expected.attention_mask[row].sum() == longer.attention_mask.sum() == encoded_frames
        ours = expected.last_hidden_state[row, :encoded_frames]
        for other in (single, longer):
            torch.testing.assert_close(other.last_hidden_state[0, :encoded_frames], ours, atol=1e-5, rtol=0)


@torch.no_grad()
def test_legacy_subsampling_sees_the_padding():
    masked, plain = tiny(NestModel), tiny(NestModel, masked_subsampling=False)
    assert masked.state_dict().keys() == plain.state_dict().keys()
    features, mask = batch()["input_features"], batch()["attention_mask"]
    full, padded = (slice(0, 1), slice(1, 2))
    for rows, same in ((full, True), (padded, False)):
        ours, theirs = (m.subsampling(features[rows], mask[rows])[:, :8] for m in (masked, plain))
        assert torch.allclose(ours, theirs, atol=1e-5) == same
    reference = F.conv2d(
        features[:1, None], plain.subsampling.layers[0].weight, plain.subsampling.layers[0].bias, 2, 1
    )
    for layer in list(plain.subsampling.layers)[1:]:
        reference = layer(reference)
    reference = plain.subsampling.linear(reference.transpose(1, 2).flatten(2))
    torch.testing.assert_close(plain.subsampling(features[:1], mask[:1]), reference, atol=1e-5, rtol=0)


def test_save_and_load_is_exact(tmp_path):
    model = tiny(num_codebooks=2).train()
    model(**batch()).loss.backward()  # moves the BatchNorm statistics
    model.eval().save_pretrained(tmp_path)
    loaded = NestForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict() and not loaded.training
    state = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert torch.equal(NestModel.from_pretrained(tmp_path).layers[2].conv.norm.running_var,
                       model.encoder.layers[2].conv.norm.running_var)  # fmt: skip


@pytest.mark.parametrize("name", ["quantizer.codebooks", "mask_embedding", "encoder.layers.1.norm_out.weight"])
def test_missing_tensor_is_an_error(tmp_path, name):
    tiny().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 tensors of NestForPreTraining .*{name}"):
        NestForPreTraining.from_pretrained(tmp_path)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="`input_features` has 64 mel bins, the model 80"):
        tiny(NestModel)(torch.randn(1, 96, 64))
    with pytest.raises(ValueError, match="`target_features` has shape"):
        tiny()(torch.randn(1, 96, 80), target_features=torch.randn(1, 104, 80))


# --- loss ------------------------------------------------------------------------------------------------------------


def test_training_decodes_masked_frames_only():
    model = tiny(**NO_DROPOUT).train()
    masked_only, all_frames = model(**batch()), model(**batch(), output_logits=True)
    assert masked_only.logits is None and all_frames.logits.shape == (3, 12, 1, 64)
    torch.testing.assert_close(masked_only.loss, all_frames.loss, rtol=1e-6, atol=0)
    assert masked_only.num_correct == all_frames.num_correct
    assert model.eval()(**batch(), output_logits=False).logits is None


def test_loss_is_the_mean_over_masked_frames_and_codebooks():
    out = tiny(num_codebooks=2)(**batch())
    in_loss = out.labels != -100
    assert in_loss.sum() == 3 * 4  # frames 8 to 40 are 4 whole encoder frames
    expected = torch.stack([F.cross_entropy(out.logits[in_loss][:, h], out.codes[in_loss][:, h]) for h in range(2)])
    torch.testing.assert_close(out.loss, expected.mean())
    assert out.num_correct == (out.logits[in_loss].argmax(-1) == out.codes[in_loss]).sum()


@pytest.mark.parametrize("train", [True, False])
def test_no_masked_frame_gives_a_zero_loss(train):
    model = tiny().train(train)
    out = model(**{**batch(), "mask_time_indices": torch.zeros(3, 96, dtype=torch.bool)})
    assert out.loss == 0 and out.num_correct == 0
    out.loss.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())
    assert model(**batch()).loss.isfinite()


def test_without_a_mask_there_is_no_loss():
    out = tiny()(batch()["input_features"])
    assert out.loss is None and out.labels is None and out.logits.shape == (3, 12, 1, 64)


def test_halves_of_a_batch_add_up_to_the_whole():
    model, whole = tiny(), batch()
    whole["mask_time_indices"][0, 8:80] = True  # rows with unequal numbers of masked frames
    expected = gradients(model, **whole)
    loss, count = model(**whole).loss, int((model(**whole).labels != -100).sum())
    model.zero_grad()
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        part = model(**{name: tensor[rows] for name, tensor in whole.items()}, num_items_in_batch=count).loss
        part.backward()
        parts.append(part)
    torch.testing.assert_close(sum(parts), loss)
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, expected)


def test_given_labels_choose_the_frames():
    out = tiny()(**batch(), labels=torch.where(torch.arange(12) == 2, 0, -100).repeat(3, 1))
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[:, 2, 0], out.codes[:, 2, 0]))


def test_squeeze_single_drops_the_codebook_dimension():
    plain, squeezed = tiny()(**batch()), tiny(squeeze_single=True)(**batch())
    assert squeezed.codes.shape == (3, 12) and squeezed.logits.shape == (3, 12, 64)
    assert torch.equal(squeezed.loss, plain.loss) and torch.equal(squeezed.codes, plain.codes[..., 0])
    assert tiny(squeeze_single=True, num_codebooks=2)(**batch()).codes.shape == (3, 12, 2)


def test_mask_embedding():
    frozen, trained, constant = tiny(), tiny(freeze_mask_embedding=False), tiny(mask_value=0.5)
    assert "mask_embedding" not in dict(frozen.named_parameters())
    assert torch.equal(constant.mask_embedding, torch.full((80,), 0.5))
    assert gradients(trained, **batch())["mask_embedding"].norm() > 0
    hidden = batch()
    hidden["input_features"] = torch.where(hidden["mask_time_indices"][..., None], 9.0, hidden["input_features"])
    targets = {"target_features": batch()["input_features"]}
    assert torch.equal(frozen(**batch(), **targets).logits, frozen(**hidden, **targets).logits)


def test_masking_after_the_convolutions_trains_them():
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, 1:4] = True
    model = tiny(mask_position="post_conv", freeze_mask_embedding=False)
    out = model(**batch(mask_time_indices=mask))
    assert torch.equal(out.labels != -100, mask) and model.mask_embedding.shape == (64,)
    for name, gradient in gradients(model, **batch(mask_time_indices=mask)).items():
        if "subsampling" in name or name == "mask_embedding":
            assert gradient.norm() > 0, name
    first_input = model(**batch(mask_time_indices=mask), output_hidden_states=True).hidden_states[0]
    masked = first_input[mask] / model.encoder.input_scale
    torch.testing.assert_close(masked, model.mask_embedding.expand_as(masked))


# --- training behaviour ----------------------------------------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_gradients():
    model = tiny().train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.encoder.gradient_checkpointing or model.encoder.layers[0].gradient_checkpointing
        torch.manual_seed(3)
        results.append(gradients(model, **batch()))
    for name, gradient in results[0].items():
        assert torch.equal(results[1][name], gradient), name
    torch.manual_seed(4)
    assert not torch.equal(gradients(model, **batch())["decoder.linear.weight"], results[0]["decoder.linear.weight"])


def test_attention_implementations_agree_in_training():
    results = []
    for attention in ("eager", "sdpa"):
        model = tiny(**NO_DROPOUT).train()
        model.set_attn_implementation(attention)
        results.append(gradients(model, **batch()))
    assert_same_gradients(*results)


def test_dropout_has_its_rate_and_scale_and_follows_the_seed():
    x, p = torch.rand(1001, 1003) + 0.5, 0.1
    torch.manual_seed(0)
    y = dropout(x, p, True)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p, True), y)
    assert not torch.equal(dropout(x, p, True), y)
    kept = y != 0
    count = x.numel()
    assert abs(kept.float().mean() - 0.9) < 5 * (0.1 * 0.9 / count) ** 0.5 + 2**-17
    torch.testing.assert_close(y[kept], x[kept] / 0.9, rtol=1e-4, atol=0)  # p is rounded to 16 bits
    assert abs(y.double().mean() / x.double().mean() - 1) < 5 * (0.12 / count) ** 0.5  # unbiased
    neighbours = (kept[:, 1:] & kept[:, :-1]).float().mean()
    assert abs(neighbours - 0.81) < 5 * (0.25 / count) ** 0.5  # independent
    assert dropout(x, p, False) is x and dropout(x, 0.0, True) is x
    assert dropout(x, 1.0, True).abs().max() == 0


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 3, 5)])
def test_gradient_of_dropout_is_its_mask(shape):
    x = torch.rand(shape, dtype=torch.float64).add_(0.5).requires_grad_()
    y = dropout(x, 0.3, True)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())


def test_dropout_is_on_every_residual_branch():
    """NeMo's places: input 1, per block 4 branches, 2 inside feed-forwards, 1 on attention weights."""
    calls = []

    def record(x, p, training):
        calls.append((p, training))
        return x

    rates = {"dropout": 0.11, "hidden_dropout": 0.12, "activation_dropout": 0.13, "attention_dropout": 0.14}
    model = tiny(**rates).train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_nest, "dropout", record)
        model(**batch())
    assert all(training for _, training in calls)
    counts = {rate: sum(p == rate for p, _ in calls) for rate in rates.values()}
    assert counts == {0.11: 1, 0.12: 3 * 4, 0.13: 3 * 2, 0.14: 3}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 5, 24), (2, 3, 4, 24), (0, 24)])
def test_linear_equals_torchs(shape, bias):
    torch.manual_seed(0)
    tensors = [torch.randn(shape), torch.randn(40, 24)] + ([torch.randn(40)] if bias else [])
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
        y = function(*leaves)
        (y * torch.linspace(-1, 1, 40, dtype=dtype)).square().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-4)


def test_custom_backwards_against_finite_differences(monkeypatch):
    monkeypatch.setattr(cpu_ops.PatchStage, "CHUNK", 5)  # 12 rows: the last chunk is shorter
    torch.manual_seed(0)
    patches, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((12, 10), (4, 10)))
    mask = (torch.arange(12) % 3 > 0)[:, None]
    for m in (None, mask):
        assert torch.autograd.gradcheck(lambda *a, m=m: cpu_ops.PatchStage.apply(*a, m), (patches, weight))
        assert torch.autograd.gradcheck(lambda x, m=m: cpu_ops.MaskedReLU.apply(x, m), (patches,))


def test_subsampling_equals_parakeets_forward_and_backward():
    """Chunks, channels-last products and hand-written gradients against plain autograd in float64."""
    config = NestConfig.from_preset("tiny")
    torch.manual_seed(0)
    ours, reference = NestSubsampling(config), ParakeetEncoderSubsamplingConv2D(config).double()
    reference.load_state_dict(ours.state_dict())
    inputs = batch()
    results = []
    for module, dtype in ((ours, torch.float32), (reference, torch.float64)):
        features = inputs["input_features"].to(dtype, copy=True).requires_grad_()
        out = module(features, inputs["attention_mask"])
        valid = golden.valid(torch.tensor([12, 8, 5]), 12)
        (out[valid] * torch.linspace(-1, 1, 64, dtype=dtype)).square().sum().backward()
        results.append((out[valid], features.grad, {n: p.grad.float() for n, p in module.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0].float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1].float(), atol=1e-5, rtol=1e-4)
    assert_same_gradients(results[0][2], results[1][2], relative=1e-5)


def test_bfloat16_autocast_is_finite_and_near_float32():
    model = tiny(**NO_DROPOUT).train()
    expected, exact = model(**batch()), gradients(model, **batch())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch())
    assert torch.equal(out.codes, expected.codes)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.02, atol=0)
    model.zero_grad()
    out.loss.backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    theirs = torch.cat([exact[name].flatten() for name, _ in model.named_parameters()])
    assert ours.isfinite().all() and F.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_half_precision_models_run():
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny().to(dtype)
        out = model(**batch())
        assert out.logits.dtype == dtype and out.logits.isfinite().all() and out.loss.isfinite()


# --- CTC and Parakeet ------------------------------------------------------------------------------------------------


def test_ctc_loss_and_blank_in_padding():
    model = tiny(NestForCTC, vocab_size=12, pad_token_id=11, ctc_loss_reduction="sum")
    inputs = {name: batch()[name] for name in ("input_features", "attention_mask")}
    labels = torch.tensor([[3, 1, 4], [1, 5, -100], [9, 11, 11]])  # padded with -100 or the blank
    out = model(**inputs, labels=labels)
    lengths, target_lengths = torch.tensor([12, 8, 5]), torch.tensor([3, 2, 1])
    log_probs = out.logits.log_softmax(-1).transpose(0, 1)
    expected = F.ctc_loss(log_probs, labels.clamp_min(0), lengths, target_lengths, blank=11, reduction="sum")
    torch.testing.assert_close(out.loss, expected)
    valid = golden.valid(lengths, 12)
    assert (out.logits.argmax(-1)[~valid] == 11).all()
    encoded = model.encoder(**inputs).last_hidden_state
    torch.testing.assert_close(out.logits[valid], model.ctc_head(encoded)[valid])
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_pretrained_weights_start_a_ctc_model(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = NestForCTC.from_pretrained(tmp_path, vocab_size=12, pad_token_id=11)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], tensor), name


def parakeet_config(config: NestConfig) -> ParakeetEncoderConfig:
    fields = ParakeetEncoderConfig().to_dict().keys() - {"model_type", "transformers_version", "architectures"}
    return ParakeetEncoderConfig(**{name: value for name, value in config.to_dict().items() if name in fields})


@torch.no_grad()
@pytest.mark.parametrize("case", golden.CASES)
def test_weights_pass_to_parakeet_and_back(case):
    nest, inputs = golden.model(case).encoder, batch()
    features, mask = inputs["input_features"], inputs["attention_mask"]
    config = parakeet_config(nest.config)
    expected = nest(features, mask).last_hidden_state
    valid = golden.valid(torch.tensor([12, 8, 5]), 12)

    recogniser = ParakeetForCTC(
        ParakeetCTCConfig(encoder_config=config.to_dict(), vocab_size=12, pad_token_id=11)
    ).eval()
    recogniser.encoder.load_state_dict(nest.state_dict())
    ours = recogniser.encoder(features, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours[valid], expected[valid], atol=1e-5, rtol=0)

    torch.manual_seed(5)
    parakeet = ParakeetEncoder(config).eval()
    back = NestModel(nest.config).eval()
    back.load_state_dict(parakeet.state_dict())
    expected = parakeet(features, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(back(features, mask).last_hidden_state[valid], expected[valid], atol=1e-5, rtol=0)
