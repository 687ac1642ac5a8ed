"""What every model of transformers promises, held by each of ours: one property a test, all classes."""

import copy
import inspect
import itertools
import pickle
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from tiny_asr import text_config
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    PreTrainedModel,
)

from nest_hf import (
    NestAsrConfig,
    NestAsrForConditionalGeneration,
    NestConfig,
    NestForAudioFrameClassification,
    NestForCTC,
    NestForPreTraining,
    NestForSequenceClassification,
    NestForXVector,
    NestModel,
)

FRAMES = (96, 61, 40)  # mel frames of the recordings of a batch
ENCODED = (12, 8, 5)  # encoder frames
NUM_LAYERS, NUM_HEADS, WIDTH, NUM_LABELS = 2, 4, 32, 5
NO_DROPOUT = dict.fromkeys(("dropout", "hidden_dropout", "activation_dropout", "attention_dropout"), 0.0)
ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "subsampling_conv_channels": 8,
    "codebook_size": 16,
}
HEADS = {
    "num_labels": NUM_LABELS,
    "use_weighted_layer_sum": True,
    "classifier_proj_size": 16,
    "tdnn_dim": [16, 24],
    "tdnn_kernel": [5, 3],
    "tdnn_dilation": [1, 2],
    "xvector_output_dim": 12,
    "vocab_size": 12,
    "pad_token_id": 11,
}


@dataclass(frozen=True)
class Case:
    """A class, how to reach it by an Auto class, its labels, and the output that tests compare."""

    cls: type[PreTrainedModel]
    auto: Any
    labels: dict[str, torch.Tensor]
    output: str = "logits"

    def config(self, **overrides):
        if self.cls is not NestAsrForConditionalGeneration:
            return NestConfig(**{**ENCODER, **HEADS, **overrides})
        top = {key: overrides.pop(key) for key in ("return_dict",) if key in overrides}
        no_dropout = {key: value for key, value in overrides.items() if key == "attention_dropout"}
        return NestAsrConfig(
            audio_config={**ENCODER, **overrides},
            adaptor_config={"num_attention_heads": 4, "projector_hidden_size": 24, **no_dropout},
            ctc_config={"vocab_size": 12, "pad_token_id": 11},
            text_config=text_config(50, **no_dropout),
            audio_token_id=5,
            ctc_weight=0.5,
            **top,
        )

    def model(self, seed: int = 0, attention: str | None = None, **overrides) -> PreTrainedModel:
        torch.manual_seed(seed)
        config = self.config(**overrides)
        if attention:
            config._attn_implementation = attention
        return self.cls._from_config(config).eval()

    def inputs(self, rows=slice(None), labels: bool = False) -> dict[str, torch.Tensor]:
        """Random recordings of 96, 61 and 40 frames, and whatever else the class needs."""
        valid = torch.arange(96) < torch.tensor(FRAMES)[:, None]
        features = torch.randn(3, 96, 80, generator=torch.Generator().manual_seed(1)) * valid[..., None]
        mask = "attention_mask"
        inputs = {"input_features": features}
        if self.cls is NestAsrForConditionalGeneration:
            mask = "input_features_mask"
            text = torch.tensor([1, 2] + [5] * 12 + [3, 4, 7, 8])
            is_text = torch.stack([(text != 5) | ((text == 5).cumsum(0) <= n) for n in ENCODED])
            order = (~is_text).int().argsort(dim=1, stable=True)
            inputs["input_ids"] = torch.where(is_text, text, 0).gather(1, order)
            inputs["attention_mask"] = is_text.int().gather(1, order)
        if labels:
            inputs |= self.labels
            if self.cls is NestForPreTraining:
                inputs["mask_time_indices"] = torch.zeros(3, 96, dtype=torch.bool).index_fill_(
                    1, torch.arange(8, 40), True
                )
        return {name: value[rows] for name, value in (inputs | {mask: valid.int()}).items()}

    def num_layers(self) -> int:
        return NUM_LAYERS


CTC_LABELS = torch.tensor([[3, 1, 4], [1, 5, -100], [9, -100, -100]])
CASES = {
    case.cls.__name__: case
    for case in (
        Case(NestModel, AutoModel, {}, "last_hidden_state"),
        Case(NestForPreTraining, AutoModelForPreTraining, {}),
        Case(NestForCTC, AutoModelForCTC, {"labels": CTC_LABELS}),
        Case(
            NestForSequenceClassification,
            AutoModelForAudioClassification,
            {"labels": torch.tensor([0, NUM_LABELS - 1, 2])},
        ),
        Case(
            NestForAudioFrameClassification,
            AutoModelForAudioFrameClassification,
            {"labels": torch.arange(36).view(3, 12) % NUM_LABELS},
        ),
        Case(NestForXVector, AutoModelForAudioXVector, {"labels": torch.tensor([0, NUM_LABELS - 1, 2])}, "embeddings"),
        Case(
            NestAsrForConditionalGeneration,
            AutoModelForMultimodalLM,
            {"labels": torch.full((3, 18), -100).index_fill_(1, torch.arange(1, 9), 9), "ctc_labels": CTC_LABELS},
        ),
    )
}
RECOGNISER = "NestAsrForConditionalGeneration"
ENCODER_CLASSES = [name for name in CASES if name != RECOGNISER]
TRAINABLE = [name for name in CASES if name != "NestModel"]


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def on(names):
    """The test runs for these classes only."""
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


def encoder_of(model) -> NestModel:
    return next(module for module in model.modules() if isinstance(module, NestModel))


def lax_load(cls, *args, **kwargs):
    """`from_pretrained` of transformers, where the class's own is strict about missing tensors."""
    return PreTrainedModel.from_pretrained.__func__(cls, *args, **kwargs)


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close_gradients(ours, expected, relative=1e-4):
    """Relative to each tensor's norm; the floor is for those that are 0 in exact arithmetic (biases of the keys)."""
    assert ours.keys() == expected.keys()
    floor = 1e-6 * torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= relative * gradient.norm() + floor, name


def valid_part(case: Case, output: torch.Tensor) -> torch.Tensor:
    """The frames or positions that are no padding."""
    if case.output == "embeddings" or case.cls is NestForSequenceClassification:
        return output
    if case.cls is NestAsrForConditionalGeneration:
        return output[case.inputs()["attention_mask"].bool()]
    return output[torch.arange(output.shape[1]) < torch.tensor(ENCODED)[:, None]]


# --- saving and loading ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_save_and_load_is_exact(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded, info = case.cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")) and not loaded.training
    assert_same_state(loaded.state_dict(), model.state_dict())
    loaded.save_pretrained(tmp_path / "again")
    # loading writes the dtype into the configs of the parts too
    texts = [re.sub(r' *"dtype": "float32",?\n', "", (folder / "config.json").read_text())
             for folder in (tmp_path, tmp_path / "again")]  # fmt: skip
    assert texts[0] == texts[1]
    assert torch.equal(loaded(**case.inputs())[case.output], model(**case.inputs())[case.output])


@torch.no_grad()
def test_shards_hold_the_same_model(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and (tmp_path / "model.safetensors.index.json").exists()
    assert_same_state(case.cls.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_its_auto_class_loads_it(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    assert type(case.auto.from_pretrained(tmp_path)) is case.cls


@on(ENCODER_CLASSES)
def test_the_encoder_passes_between_all_classes(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path / "model")
    encoder = NestModel.from_pretrained(tmp_path / "model")
    assert_same_state(encoder.state_dict(), encoder_of(model).state_dict())
    other = case.model(seed=1)
    assert not torch.equal(next(encoder_of(other).parameters()), next(encoder.parameters()))
    encoder.save_pretrained(tmp_path / "encoder")
    back = lax_load(case.cls, tmp_path / "encoder")
    assert_same_state(encoder_of(back).state_dict(), encoder.state_dict())
    for name, tensor in back.state_dict().items():  # the head is new, and whole
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name


@on([name for name in ENCODER_CLASSES if name not in ("NestModel", "NestForPreTraining")])
def test_loading_another_classs_checkpoint_tells_what_is_new_and_no_more(case, tmp_path, caplog):
    CASES["NestForPreTraining"].model().save_pretrained(tmp_path)
    _, info = case.cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert info["missing_keys"] == {name for name in case.model().state_dict() if not name.startswith("encoder.")}


@on(ENCODER_CLASSES)
def test_an_encoder_ignores_the_heads_of_others(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    _, info = NestModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@on(["NestForCTC", "NestForSequenceClassification", "NestForAudioFrameClassification", "NestForXVector"])
def test_a_head_of_another_size_is_an_error_or_new_on_request(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    other = {"vocab_size": 20} if case.cls is NestForCTC else {"num_labels": 7}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        case.cls.from_pretrained(tmp_path, **other)
    loaded, info = case.cls.from_pretrained(tmp_path, **other, ignore_mismatched_sizes=True, output_loading_info=True)
    changed = {name for name, tensor in loaded.state_dict().items() if tensor.shape != model.state_dict()[name].shape}
    assert changed and {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]} == changed
    for name in changed:
        assert loaded.state_dict()[name].isfinite().all() and loaded.state_dict()[name].std() > 0
    assert_same_state(encoder_of(loaded).state_dict(), encoder_of(model).state_dict())


@torch.no_grad()
def test_copies_and_pickles_compute_the_same(case):
    model = case.model()
    pickled = pickle.dumps(model)
    expected = model(**case.inputs(), output_hidden_states=True)[case.output]  # installs hooks
    for other in (copy.deepcopy(model), pickle.loads(pickled)):
        assert torch.equal(other(**case.inputs())[case.output], expected)
        assert other.state_dict().keys() == model.state_dict().keys()


# --- initial weights -------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_weights(case):
    assert_same_state(case.model(seed=3).state_dict(), case.model(seed=3).state_dict())
    state, other = case.model(seed=3).state_dict(), case.model(seed=4).state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in state.items())


def test_a_missing_tensor_starts_as_in_a_new_model(case, monkeypatch):
    """Every module seeded alike, so that it does not matter in which order the two ways initialise them."""
    classes = {type(module) for module in case.model().modules() if isinstance(module, PreTrainedModel)}
    for cls in classes:
        original = cls._init_weights

        def seeded(self, module, original=original):
            torch.manual_seed(0)
            original(self, module)

        monkeypatch.setattr(cls, "_init_weights", seeded)
    new = case.model()
    loaded = lax_load(case.cls, None, config=case.config(), state_dict={})
    for name, tensor in new.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_training_starts_from_finite_weights_of_every_kind(case):
    for name, parameter in case.model().named_parameters():
        assert parameter.isfinite().all(), name
        constant = re.search(r"bias|norm|layer_weights|LayerNorm", name)
        assert constant or parameter.std() > 0, name


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_forward_begins_with_the_main_input(case):
    names = list(inspect.signature(case.cls.forward).parameters)[1:]
    if case.cls is NestAsrForConditionalGeneration:  # as transformers' audio language models
        assert names[:2] == ["input_ids", "input_features"]
    else:
        assert names[:2] == [case.cls.main_input_name, "attention_mask"] == ["input_features", "attention_mask"]


@torch.no_grad()
def test_tuples_hold_what_the_named_outputs_do(case):
    labels = case.cls is not NestModel
    inputs = case.inputs(labels=labels) | {"output_hidden_states": True}
    named = case.model()(**inputs)
    for model, options in ((case.model(), {"return_dict": False}), (case.model(return_dict=False), {})):
        plain = model(**inputs, **options)
        assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
        for ours, expected in zip(plain, named.to_tuple(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("by", ["call", "config"])
@torch.no_grad()
def test_hidden_states_are_the_input_and_the_output_of_each_block(case, by):
    model = case.model()
    if by == "config":
        (model.config if case.cls is not NestAsrForConditionalGeneration else model.model.language_model.config
         ).output_hidden_states = True  # fmt: skip
        out = model(**case.inputs())
    else:
        out = model(**case.inputs(), output_hidden_states=True)
    length = 18 if case.cls is NestAsrForConditionalGeneration else 12
    assert [tuple(hidden.shape) for hidden in out.hidden_states] == [(3, length, WIDTH)] * (NUM_LAYERS + 1)
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(out.hidden_states, 2))
    if case.cls is NestModel:
        assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert case.model()(**case.inputs()).hidden_states is None


@torch.no_grad()
def test_attention_weights_sum_to_one_over_the_valid_keys(case):
    out = case.model(attention="eager")(**case.inputs(), output_attentions=True)
    assert len(out.attentions) == NUM_LAYERS and case.model()(**case.inputs()).attentions is None
    for weights in out.attentions:
        assert weights.shape[:2] == (3, NUM_HEADS) and weights.shape[2] == weights.shape[3]
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        if case.cls is not NestAsrForConditionalGeneration:
            for row, length in enumerate(ENCODED):
                assert weights[row, :, :, length:].abs().sum() == 0


def test_gradients_reach_hidden_states_and_attentions(case):
    model = case.model(attention="eager")
    out = model(**case.inputs(), output_hidden_states=True, output_attentions=True)
    for tensor in (out.hidden_states[0], out.attentions[0]):
        tensor.retain_grad()
    out[case.output].flatten()[0].backward()
    assert out.hidden_states[0].grad.abs().sum() > 0 and out.attentions[0].grad.abs().sum() > 0


@torch.no_grad()
def test_eval_is_deterministic_and_changes_nothing(case):
    model, inputs = case.model(), case.inputs(labels=case.cls is not NestModel)
    state, before = state_of(model), {name: value.clone() for name, value in inputs.items()}
    config = model.config.to_dict()
    random_state = torch.get_rng_state()
    first, second = model(**inputs), model(**inputs)
    assert torch.equal(torch.get_rng_state(), random_state)
    for ours, expected in zip(first.to_tuple(), second.to_tuple(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert_same_state(model.state_dict(), state)
    assert model.config.to_dict() == config
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name


@on(TRAINABLE)
def test_training_moves_nothing_but_batch_statistics_until_the_step(case):
    model, inputs = case.model().train(), case.inputs(labels=True)
    state, before = state_of(model), {name: value.clone() for name, value in inputs.items()}
    torch.manual_seed(0)
    first = model(**inputs).loss
    first.backward()
    for name, tensor in model.state_dict().items():
        is_statistic = re.search(r"\.norm\.(running_mean|running_var|num_batches_tracked)$", name)
        assert torch.equal(tensor, state[name]) != bool(is_statistic), name
    assert all(torch.equal(value, before[name]) for name, value in inputs.items())
    assert model(**inputs).loss != first  # dropout is on
    torch.manual_seed(0)
    assert torch.equal(model(**inputs).loss, first)  # and depends on the seed alone


@torch.no_grad()
def test_a_batch_computes_what_its_rows_do_alone(case):
    model = case.model()
    whole = model(**case.inputs())[case.output]
    for row, encoded in enumerate(ENCODED):
        inputs = case.inputs(rows=slice(row, row + 1))
        for name, value in inputs.items():
            length = 8 * encoded if value.shape[1] == 96 else 6 + encoded
            inputs[name] = value[:, :length]
        single = model(**inputs)[case.output][0]
        ours = whole[row][: len(single)] if whole.dim() > 2 else whole[row]
        torch.testing.assert_close(ours, single, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_of_any_type_mean_the_same(case):
    model, results = case.model(), []
    for dtype in (torch.bool, torch.int32, torch.int64):
        inputs = {name: x.to(dtype) if name.endswith("mask") else x for name, x in case.inputs().items()}
        results.append(valid_part(case, model(**inputs)[case.output]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# --- attention, precision, gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_sdpa_equals_eager(case, masked):
    results = []
    for attention in ("eager", "sdpa"):
        model = case.model(attention=attention)
        used = {m.config._attn_implementation for m in model.modules() if isinstance(m, PreTrainedModel)}
        assert used == {attention}
        inputs = case.inputs(rows=slice(None) if masked else slice(0, 1))
        if not masked:
            inputs = {name: value for name, value in inputs.items() if not name.endswith("mask")}
        output = model(**inputs)[case.output]
        results.append(valid_part(case, output) if masked else output)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@on(TRAINABLE)
def test_gradients_of_sdpa_equal_those_of_eager(case):
    ours, expected = (
        gradients(case.model(attention=attention, **NO_DROPOUT).train(), case.inputs(labels=True))
        for attention in ("sdpa", "eager")
    )
    assert_close_gradients(ours, expected)


def test_attention_can_be_chosen_when_loading_and_later(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    model = case.cls.from_pretrained(tmp_path, attn_implementation="eager")
    assert encoder_of(model).config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert encoder_of(model).config._attn_implementation == model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError):
        case.cls.from_pretrained(tmp_path, attn_implementation="no such thing")


@on(TRAINABLE)
def test_every_parameter_that_trains_gets_a_gradient(case):
    model = case.model().train()
    given = gradients(model, case.inputs(labels=True))
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or name in given, name
        assert name not in given or given[name].isfinite().all(), name


@on(TRAINABLE)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(case, reentrant):
    model = case.model().train()
    torch.manual_seed(3)
    expected = gradients(model, case.inputs(labels=True))
    plain = case.model().train()
    plain.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert plain.is_gradient_checkpointing
    recomputed = [0]
    block = encoder_of(plain).layers[0].feed_forward1
    block.register_forward_hook(lambda *_: recomputed.__setitem__(0, recomputed[0] + 1))
    torch.manual_seed(3)
    ours = gradients(plain, case.inputs(labels=True))
    assert recomputed[0] == 2  # it does recompute
    assert_close_gradients(ours, expected, relative=1e-5)
    plain.gradient_checkpointing_disable()
    assert not plain.is_gradient_checkpointing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_loads_runs_and_is_near_float32(case, dtype, tmp_path):
    case.model().save_pretrained(tmp_path)
    inputs = case.inputs(labels=case.cls is not NestModel)
    options = {"output_logits": True} if case.cls is NestAsrForConditionalGeneration else {}
    expected = case.cls.from_pretrained(tmp_path)(**inputs, **options)
    model = case.cls.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype} == {model.dtype}
    out = model(**inputs, **options)
    assert out[case.output].dtype == dtype
    ours, theirs = (valid_part(case, x[case.output]).float() for x in (out, expected))
    assert ours.isfinite().all()
    assert (ours - theirs).norm() <= (0.05 if dtype == torch.bfloat16 else 0.01) * theirs.norm()
    if "loss" in out:
        assert out.loss.dtype == torch.float32  # losses add up in float32
        torch.testing.assert_close(out.loss, expected.loss, rtol=0.05, atol=0)
    model.save_pretrained(tmp_path / "half")
    assert case.cls.from_pretrained(tmp_path / "half", dtype="auto").dtype == dtype


# --- devices ---------------------------------------------------------------------------------------------------------


def test_blocks_that_must_stay_together_do(case):
    """`_no_split_modules` names classes of the model, and an automatic device map never goes into one of them."""
    model = case.model()
    classes = {type(module).__name__: name for name, module in model.named_modules()}
    whole = set(model._no_split_modules) & set(classes)
    assert "NestBlock" in whole
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    device_map = infer_auto_device_map(
        model, max_memory={0: size // 3, 1: size // 3, "cpu": size * 4}, no_split_module_classes=list(whole)
    )
    assert len(set(device_map.values())) > 1
    for name, module in model.named_modules():
        if type(module).__name__ in whole:
            assert not any(key.startswith(f"{name}.") for key in device_map), (name, device_map)


@torch.no_grad()
def test_device_map_auto_puts_a_model_on_the_cpu(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    loaded = case.cls.from_pretrained(tmp_path, device_map="auto")
    if not torch.cuda.is_available():
        assert loaded.device.type == "cpu"
    assert torch.allclose(loaded(**case.inputs())[case.output], model(**case.inputs())[case.output], atol=1e-5)


@torch.no_grad()
def test_weights_left_on_disk_are_there_when_needed(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path / "model")
    on_disk = [
        name for name, module in model.named_modules() if type(module).__name__ in ("NestSubsampling", "NestBlock")
    ]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    parts = {name: "cpu" for name, _ in tensors if not name.startswith(tuple(f"{part}." for part in on_disk))}
    parts |= dict.fromkeys(on_disk, "disk")
    loaded = case.cls.from_pretrained(tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(**case.inputs())[case.output], model(**case.inputs())[case.output])


# --- adapters --------------------------------------------------------------------------------------------------------


@on(TRAINABLE)
def test_lora_trains_under_gradient_checkpointing(case):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(case.model(), peft.LoraConfig(r=2, target_modules=r".*layers\.\d+\.self_attn\.q_proj"))
    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    given = gradients(model, case.inputs(labels=True))
    assert given and all("lora_" in name for name in given)
    assert all(gradient.abs().sum() > 0 for name, gradient in given.items() if "lora_B" in name)


# --- tied and resized embeddings -------------------------------------------------------------------------------------


def test_the_encoder_has_no_embeddings_to_resize():
    for name in ENCODER_CLASSES:
        model = CASES[name].model()
        assert not model.get_output_embeddings()
        with pytest.raises(NotImplementedError):
            model.resize_token_embeddings(60)


def test_tied_embeddings_stay_tied_and_are_saved_once(tmp_path):
    model = CASES[RECOGNISER].model()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = NestAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    names = [name for name, p in loaded.named_parameters(remove_duplicate=False) if p is loaded.lm_head.weight]
    assert len(names) == 2


@torch.no_grad()
def test_resized_embeddings_keep_the_old_tokens(tmp_path):
    case = CASES[RECOGNISER]
    model = case.model()
    before = model(**case.inputs()).logits
    model.resize_token_embeddings(60)
    assert model.config.text_config.vocab_size == model.lm_head.out_features == 60
    assert model.lm_head.weight is model.get_input_embeddings().weight
    after = model(**case.inputs()).logits
    assert after.shape[-1] == 60
    torch.testing.assert_close(after[..., :50], before)
    model.save_pretrained(tmp_path)
    assert torch.equal(NestAsrForConditionalGeneration.from_pretrained(tmp_path)(**case.inputs()).logits, after)


# --- compilation and export ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch.no_grad()
def test_compiled_forward_is_one_graph_and_equal(case, backend):
    torch.compiler.reset()
    model = case.model()
    expected = valid_part(case, model(**case.inputs())[case.output])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ours = valid_part(case, compiled(**case.inputs())[case.output])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@on(TRAINABLE)
@pytest.mark.slow
def test_compiled_training_gives_the_same_gradients(case):
    torch.compiler.reset()
    inputs = case.inputs(labels=True)
    expected = gradients(case.model(**NO_DROPOUT).train(), inputs)
    model = case.model(**NO_DROPOUT).train()
    # forward and backward graphs as inductor gets them, without its long code generation
    torch.compile(model, backend="aot_eager")(**inputs).loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close_gradients(ours, expected, relative=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_exported_program_computes_the_same(case):
    model, inputs = case.model(), case.inputs()
    if case.cls is NestAsrForConditionalGeneration:
        inputs["use_cache"] = False  # a cache is no tensor
    expected = valid_part(case, model(**inputs)[case.output])
    program = torch.export.export(model, (), inputs, strict=False)
    ours = valid_part(case, program.module()(**inputs)[case.output])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@on(ENCODER_CLASSES)
@pytest.mark.slow
@torch.no_grad()
def test_exported_program_takes_other_lengths_and_batches(case):
    model, inputs = case.model(), case.inputs()
    batch, frames = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("frames", min=2, max=256)
    shapes = {"input_features": {0: batch, 1: 8 * frames}, "attention_mask": {0: batch, 1: 8 * frames}}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    others = {"input_features": torch.randn(2, 160, 80), "attention_mask": torch.ones(2, 160, dtype=torch.int32)}
    torch.testing.assert_close(
        program.module()(**others)[case.output], model(**others)[case.output], atol=1e-5, rtol=1e-5
    )


def test_no_module_is_left_without_a_config_of_its_own(case):
    """Parts that choose an attention implementation see the model's choice."""
    for name, module in case.model(attention="eager").named_modules():
        config = getattr(module, "config", None)
        if isinstance(module, nn.Module) and config is not None and hasattr(config, "_attn_implementation"):
            assert config._attn_implementation == "eager", name
