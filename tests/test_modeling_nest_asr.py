import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_asr import TOWERS, text_config, tiny_model, tiny_processor, tower_config, waves
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ParakeetCTCConfig,
    ParakeetForCTC,
    Qwen3ForCausalLM,
)

from nest_hf import NestConfig, NestModel, asr_parts
from nest_hf.asr_losses import ctc_loss
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration

FIRST_IN_BLOCK = ("norm_feed_forward1", "input_layernorm")
DURATIONS = (1.0, 0.3, 1.7, 0.55, 1.3, 0.8, 2.1, 0.4)
TEXTS = ["一二", "三", "四五一二三", "", "二二", "五四", "三一四", "一"]
ADAPTORS = [
    {"kind": "transformer"},
    {"kind": "transformer", "num_stacked_frames": 3, "output_norm": False},
    {"kind": "mlp", "num_stacked_frames": 2},
    {"kind": "linear"},
]


def build(kind="nest", adaptor=None, pad_token="<|endoftext|>", **fields):
    adaptor = adaptor or {}
    processor = tiny_processor(
        kind=kind,
        pad_token=pad_token,
        num_stacked_frames=adaptor.get("num_stacked_frames", 1),
        audio_token_divisor=fields.pop("audio_token_divisor", 1),
    )
    return processor, tiny_model(processor, kind, adaptor, **fields)


def training_batch(processor, side="right", rows=slice(None)):
    return processor(audio=waves(*DURATIONS)[rows], transcripts=TEXTS[rows], padding_side=side)


def count_calls(module):
    """A list that grows by the batch size of each call of a module."""
    calls = []
    module.register_forward_hook(lambda module, inputs, output: calls.append(1))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("adaptor", ADAPTORS)
@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_audio_and_text_changes_nothing(kind, adaptor, side):
    processor, model = build(kind, adaptor, ctc={"kind": "transformer"})
    together = model(**training_batch(processor, side))
    singles = [model(**training_batch(processor, side, slice(n, n + 1))) for n in range(len(TEXTS))]
    for name in ("lm_loss_sum", "ctc_loss_sum", "num_lm_tokens", "num_ctc_tokens"):
        total = sum(single[name] for single in singles)
        assert torch.allclose(together[name].float(), total.float(), rtol=1e-5), name


@torch.no_grad()
@pytest.mark.parametrize("kind", TOWERS)
def test_values_in_padded_frames_change_nothing(kind):
    processor, model = build(kind)
    batch = training_batch(processor)
    noisy = dict(batch)
    padding = ~batch["input_features_mask"].bool()[..., None]
    noisy["input_features"] = torch.where(padding, 7.0, batch["input_features"])
    assert torch.allclose(model(**batch).loss, model(**noisy).loss, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "<|im_end|>"])
def test_losses_are_those_of_a_plain_implementation(pad_token):
    processor, model = build(pad_token=pad_token)
    batch = training_batch(processor)
    out = model(**batch, output_logits=True)
    lm_sum, ctc_sum = 0.0, 0.0
    for row, text in enumerate(TEXTS):
        answer = [*processor.tokenizer(text).input_ids, processor.end_token_id]
        end = batch["attention_mask"][row].sum()
        log_probs = out.logits[row, end - len(answer) - 1 : end - 1].log_softmax(-1)
        lm_sum -= log_probs[range(len(answer)), answer].sum()
        target = torch.tensor(processor.ctc_tokenizer(text).input_ids)
        frames = out.ctc_logits[row, out.encoder_mask[row]].log_softmax(-1)
        ctc_sum += F.ctc_loss(frames, target, [len(frames)], [len(target)], blank=0, reduction="sum")
    num_lm_tokens, num_ctc_tokens = sum(len(text) + 1 for text in TEXTS), sum(len(text) for text in TEXTS)
    assert torch.allclose(out.lm_loss_sum, lm_sum) and torch.allclose(out.ctc_loss_sum, ctc_sum)
    assert (out.num_lm_tokens, out.num_ctc_tokens, out.num_ctc_impossible) == (num_lm_tokens, num_ctc_tokens, 0)
    assert torch.allclose(out.loss, lm_sum / num_lm_tokens + 0.3 * ctc_sum / num_ctc_tokens)


def test_losses_of_parts_of_a_batch_add_up_to_that_of_the_whole():
    """Each is a sum over a global count, so accumulation and processes weigh every token alike."""
    processor, model = build(ctc_weight=0.5)
    batch = training_batch(processor)
    counts = {
        "num_items_in_batch": (batch["labels"] != -100).sum(),
        "num_ctc_items_in_batch": int((batch["ctc_labels"] != -100).sum()),
    }
    whole = model(**batch)
    whole.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = [model(**training_batch(processor, rows=rows), **counts) for rows in (slice(0, 3), slice(3, 8))]
    sum(part.loss for part in parts).backward()
    assert torch.allclose(sum(part.loss for part in parts), whole.loss)
    assert torch.allclose(sum(part.ctc_loss for part in parts), whole.ctc_loss)
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert torch.allclose(parameter.grad, gradients[name], atol=1e-4), name


@pytest.mark.parametrize("where", ["config", "argument"])
def test_a_part_without_weight_does_not_run(where):
    processor, model = build()
    batch = training_batch(processor)
    lm_calls, ctc_calls = count_calls(model.model.language_model), count_calls(model.ctc_head)

    def run(**weights):
        if where == "argument":
            return model(**batch, **weights)
        for name, value in weights.items():
            setattr(model.config, name, value)
        return model(**batch)

    out = run(lm_weight=0.0, ctc_weight=2.0)
    assert torch.equal(out.loss.detach(), 2 * out.ctc_loss) and out.lm_loss is None and not lm_calls
    ctc_calls.clear()
    out = run(lm_weight=1.0, ctc_weight=0.0)
    assert torch.equal(out.loss.detach(), out.lm_loss) and out.ctc_loss is None and not ctc_calls
    with pytest.raises(ValueError, match="nothing to train"):
        run(lm_weight=0.0, ctc_weight=0.0)


@torch.no_grad()
def test_audio_alone_gives_ctc_logits_without_the_language_model():
    processor, model = build()
    batch = processor(audio=waves(1.0, 0.4))
    calls = count_calls(model.model.language_model)
    out = model(input_features=batch["input_features"], input_features_mask=batch["input_features_mask"])
    logits, mask = model.ctc_logits(batch["input_features"], batch["input_features_mask"])
    assert torch.equal(out.ctc_logits, logits) and torch.equal(out.encoder_mask, mask) and not calls
    assert mask.sum(-1).tolist() == [13, 5]
    assert (logits.argmax(-1)[~mask] == 0).all() and (logits.log_softmax(-1)[~mask][:, 0] == 0).all()


def test_a_ctc_target_without_a_path_is_counted_and_adds_no_loss_or_gradient():
    logits = torch.randn(3, 4, 5, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    # two equal tokens need a blank between them: three frames hold 1 1, but not 1 1 1
    labels = torch.tensor([[1, 2, 3, 4], [1, 1, 1, -100], [2, 2, -100, -100]])
    total, count, impossible = ctc_loss(logits, mask, labels, blank=0)
    possible, _, none = ctc_loss(logits[[0, 2]], mask[[0, 2]], labels[[0, 2]], blank=0)
    total.backward()
    assert (count, impossible, none) == (9, 1, 0)
    assert torch.allclose(total, possible) and torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all() and logits.grad[0].abs().sum() > 0


def test_only_the_answer_s_positions_pass_through_the_head():
    processor, model = build()
    batch = training_batch(processor)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1]))
    out = model(**batch)
    assert rows == [((batch["labels"] != -100).sum(),)] and out.logits is None


def test_placeholders_must_fit_each_recording_not_only_their_total():
    processor, model = build()
    batch = processor(audio=waves(1.0, 1.0))
    ids, audio = batch["input_ids"], batch["input_ids"] == processor.audio_token_id
    first = audio[0].nonzero()[0]
    ids[0, first], ids[1, first - 1] = processor.end_token_id, processor.audio_token_id
    assert (ids == processor.audio_token_id).sum() == audio.sum()
    with pytest.raises(ValueError, match="placeholders"):
        model(**batch)


def test_audio_replaces_placeholders_and_nothing_else():
    processor, model = build()
    batch = processor(audio=waves(1.0, 0.4))
    encoded = model.encode_audio(batch["input_features"], batch["input_features_mask"])
    text = model.get_input_embeddings()(batch["input_ids"])
    before = text.clone()
    embeds = model.model.embed(batch["input_ids"], encoded)
    adapted, mask = model.multi_modal_projector(encoded.last_hidden_state, encoded.mask)
    is_audio = batch["input_ids"] == processor.audio_token_id
    assert torch.equal(embeds[~is_audio], text[~is_audio]) and torch.equal(text, before)
    assert torch.equal(embeds[is_audio], adapted[mask])
    embeds.sum().backward()
    assert all(p.grad is not None for p in model.multi_modal_projector.parameters())


@torch.no_grad()
def test_the_language_model_gets_the_first_frames_alone():
    """As FunASR has it: `audio_token_divisor` keeps ceil(T / 8) of the frames that the adaptor made of all."""
    processor, model = build("fun_asr_nano_encoder", audio_token_divisor=8)
    batch = processor(audio=waves(1.6, 0.4))
    encoded = model.encode_audio(batch["input_features"], batch["input_features_mask"])
    adapted, mask = model.multi_modal_projector(encoded.last_hidden_state, encoded.mask)
    is_audio = batch["input_ids"] == processor.audio_token_id
    kept = [math.ceil(length / 8) for length in mask.sum(-1).tolist()]
    assert is_audio.sum(-1).tolist() == kept == [4, 1]
    embeds = model.model.embed(batch["input_ids"], encoded)
    for row, count in enumerate(kept):
        assert torch.equal(embeds[row, is_audio[row]], adapted[row, :count])


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [1, 3])
def test_batched_generation_gives_the_ids_of_one_by_one(kind, side, beams):
    processor, model = build(kind, ADAPTORS[1])
    settings = {"max_new_tokens": 12, "num_beams": beams}
    request = {"keywords": [["一" * n] for n in range(1, 9)]}  # prompts of mixed lengths too
    batch = processor(audio=waves(*DURATIONS), padding_side=side, **request)
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for row, wave in enumerate(waves(*DURATIONS)):
        single = processor(audio=wave, keywords=request["keywords"][row])
        alone = model.generate(**single, **settings)[0, single["input_ids"].shape[1] :]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert (together[row, len(alone) :] == processor.tokenizer.pad_token_id).all()


def test_generation_with_a_cache_gives_the_ids_of_full_forwards():
    processor, model = build()
    batch = processor(audio=waves(1.0, 0.4))
    generated = model.generate(**batch, max_new_tokens=6)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    audio = {name: batch[name] for name in ("input_features", "input_features_mask")}
    for _ in range(6):
        best = model(input_ids=ids, attention_mask=mask, **audio, use_cache=False).logits[:, -1].argmax(-1)
        ids, mask = torch.cat([ids, best[:, None]], 1), F.pad(mask, (0, 1), value=1)
    assert torch.equal(generated, ids)


def test_audio_is_encoded_once_and_may_be_handed_over():
    processor, model = build()
    batch = processor(audio=waves(1.0, 0.4))
    calls = count_calls(model.model.audio_tower)
    direct = model.generate(**batch, num_beams=4, max_new_tokens=5)
    assert len(calls) == 1
    encoded = model.encode_audio(batch["input_features"], batch["input_features_mask"])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.generate(**text, encoded_audio=encoded, num_beams=4, max_new_tokens=5), direct)
    assert len(calls) == 2


def test_the_prompt_is_built_where_only_audio_is_given():
    processor, model = build(adaptor={"num_stacked_frames": 2})
    batch = processor(audio=waves(1.0, 0.4))
    audio = {name: batch[name] for name in ("input_features", "input_features_mask")}
    assert torch.equal(model.generate(**audio, max_new_tokens=5), model.generate(**batch, max_new_tokens=5))
    model.config.prompt_ids = None
    with pytest.raises(ValueError, match="prompt_ids"):
        model.generate(**audio)


def test_generation_has_a_limit_of_its_own():
    """transformers' default of 20 tokens, prompt included, would end most answers before their first token."""
    processor, model = build()
    batch = processor(audio=waves(1.0))
    model.generation_config.eos_token_id = None
    assert model.generate(**batch).shape[1] == batch["input_ids"].shape[1] + 16 + 14
    assert model.generate(**batch, max_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3
    beams = GenerationConfig(num_beams=2, pad_token_id=0)
    assert model.generate(**batch, generation_config=beams).shape[1] == batch["input_ids"].shape[1] + 16 + 14


def test_gradient_checkpointing_changes_no_gradient():
    processor, model = build(ctc={"kind": "transformer"})
    batch = training_batch(processor)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):  # its running statistics are updated twice otherwise
            module.eval()
        for name in ("branch_dropout", "activation_dropout", "attention_dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    model.config.audio_config.dropout = 0.0
    model(**batch).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in gradients} == {"model", "ctc_head"}
    model.zero_grad()
    model.activation_checkpointing_enable()
    towers = model.model.audio_tower, model.model.language_model
    calls = [count_calls(getattr(tower.layers[0], name)) for tower, name in zip(towers, FIRST_IN_BLOCK, strict=True)]
    model(**batch).loss.backward()
    assert [len(of_one) for of_one in calls] == [2, 2]  # once forward, once again in the backward pass
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name


@torch.no_grad()
@pytest.mark.parametrize("kind", TOWERS)
def test_attention_implementations_agree_and_bfloat16_is_close(kind):
    processor, model = build(kind, ctc={"kind": "transformer"})
    batch = training_batch(processor)
    sdpa = model(**batch)
    model.set_attn_implementation("eager")
    assert model.config.adaptor_config._attn_implementation == "eager"
    assert torch.allclose(model(**batch).loss, sdpa.loss, atol=1e-4)
    model.set_attn_implementation("sdpa")
    low = model.to(torch.bfloat16)(**batch)
    assert low.loss.dtype == torch.float32 and torch.allclose(low.loss, sdpa.loss, rtol=0.05)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a NEST encoder and a language model, and a processor."""
    torch.manual_seed(3)
    folder, processor = tmp_path_factory.mktemp("parts"), tiny_processor()
    NestModel(tower_config()).save_pretrained(folder / "nest")
    Qwen3ForCausalLM(text_config(len(processor.tokenizer))).save_pretrained(folder / "lm")
    return SimpleNamespace(nest=str(folder / "nest"), lm=str(folder / "lm"), processor=processor)


ADAPTOR = {"num_attention_heads": 4}


@pytest.mark.parametrize("tied", [True, False])
def test_parts_keep_their_weights_and_the_rest_is_new(parts, tied, tmp_path):
    torch.manual_seed(1)
    lm = Qwen3ForCausalLM(text_config(len(parts.processor.tokenizer), tie_word_embeddings=tied))
    lm.save_pretrained(tmp_path / "lm")
    model = NestAsrForConditionalGeneration.from_parts(
        parts.nest, str(tmp_path / "lm"), parts.processor, adaptor_config=ADAPTOR, ctc_weight=0.7
    )
    tower = load_file(f"{parts.nest}/model.safetensors")
    for name, tensor in model.model.audio_tower.state_dict().items():
        assert torch.equal(tensor, tower[name]), name
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, model.model.language_model.state_dict()[name]), name
    assert torch.equal(model.lm_head.weight, lm.lm_head.weight)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.config.ctc_weight == 0.7 and model.config.language_model_name == "lm"  # no path
    assert model.ctc_head.classifier.out_features == len(parts.processor.ctc_tokenizer) and not model.training
    # and all of it comes back
    model.save_pretrained(tmp_path / "asr")
    loaded = NestAsrForConditionalGeneration.from_pretrained(tmp_path / "asr")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    batch = training_batch(parts.processor)
    assert torch.equal(model(**batch).loss, loaded(**batch).loss)
    assert loaded.generation_config.eos_token_id == parts.processor.end_token_ids
    assert not loaded.generation_config.do_sample and loaded.config.prompt_ids == parts.processor.prompt_ids()


def test_parts_may_be_modules_and_other_models(parts):
    """Parakeet with its CTC head as audio tower; GPT-2, whose names are all different, as language model."""
    processor = tiny_processor(kind="parakeet_encoder", num_stacked_frames=2)
    encoder = ParakeetForCTC(ParakeetCTCConfig(encoder_config=tower_config("parakeet_encoder"))).encoder
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=len(processor.tokenizer), n_embd=32, n_layer=1, n_head=4))
    model = NestAsrForConditionalGeneration.from_parts(encoder, lm, processor, adaptor_config=ADAPTOR)
    assert model.model.audio_tower is encoder and model.lm_head.weight is lm.transformer.wte.weight
    left, right = (model(**training_batch(processor, side)).loss for side in ("left", "right"))
    right.backward()
    assert torch.allclose(left, right)  # its positions are absolute: padding must not count
    assert model.generate(**processor(audio=waves(1.0)), max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize("kind", ["nest", "parakeet_encoder"])
def test_the_encoder_of_a_recogniser_is_an_audio_tower(kind, tmp_path):
    _, model = build(kind)
    model.save_pretrained(tmp_path)
    tower, _, _ = asr_parts.load_audio_tower(str(tmp_path))
    expected = model.model.audio_tower.state_dict()
    assert type(tower) is type(model.model.audio_tower) and tower.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in tower.state_dict().items())


def test_a_parakeet_checkpoint_with_a_head_is_an_audio_tower(parts, tmp_path):
    parakeet = ParakeetForCTC(ParakeetCTCConfig(encoder_config=tower_config("parakeet_encoder")))
    parakeet.save_pretrained(tmp_path)
    processor = tiny_processor(kind="parakeet_encoder")
    model = NestAsrForConditionalGeneration.from_parts(str(tmp_path), parts.lm, processor, adaptor_config=ADAPTOR)
    for name, tensor in parakeet.encoder.state_dict().items():
        assert torch.equal(tensor, model.model.audio_tower.state_dict()[name]), name


def test_the_commit_of_a_branch_is_pinned_and_recorded(parts, monkeypatch):
    class Resolved(str):
        resolved = "0123abc"

    asked = []
    monkeypatch.setattr(
        asr_parts, "resolve_revision", lambda source, revision: asked.append(revision) or Resolved("main")
    )
    model = NestAsrForConditionalGeneration.from_parts(
        parts.nest, parts.lm, parts.processor, adaptor_config=ADAPTOR, language_model_revision="main"
    )
    assert model.config.language_model_revision == model.config.audio_tower_revision == "0123abc"
    assert asked == [None, "main"]


def without_a_tensor(source, target, name=None, extra=None):
    tensors = load_file(f"{source}/model.safetensors")
    if name is not None:
        tensors.pop(name)
    tensors.update(extra or {})
    target.mkdir()
    for file in ("config.json",):
        (target / file).write_bytes(open(f"{source}/{file}", "rb").read())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def test_a_missing_or_unexpected_tensor_is_an_error(parts, tmp_path):
    from_parts = NestAsrForConditionalGeneration.from_parts
    lost = "layers.0.norm_out.weight"
    tower = without_a_tensor(parts.nest, tmp_path / "nest", lost)
    with pytest.raises(ValueError, match=lost):
        from_parts(tower, parts.lm, parts.processor, adaptor_config=ADAPTOR)
    lost = "model.layers.1.mlp.up_proj.weight"
    lm = without_a_tensor(parts.lm, tmp_path / "lm", lost)
    with pytest.raises(ValueError, match=lost):
        from_parts(parts.nest, lm, parts.processor, adaptor_config=ADAPTOR)
    from_parts(parts.nest, parts.lm, parts.processor, adaptor_config=ADAPTOR).save_pretrained(tmp_path / "asr")
    with pytest.raises(ValueError, match="lacks 1 tensors.*ctc_head.classifier.bias"):
        lost = without_a_tensor(tmp_path / "asr", tmp_path / "lost", "ctc_head.classifier.bias")
        NestAsrForConditionalGeneration.from_pretrained(lost)
    with pytest.raises(ValueError, match="has 1 tensors.*ctc_head.old"):
        more = without_a_tensor(tmp_path / "asr", tmp_path / "more", extra={"ctc_head.old": torch.zeros(1)})
        NestAsrForConditionalGeneration.from_pretrained(more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processor": tiny_processor(subsampling_factor=4)}, "subsampling_factor"),
        ({"processor": tiny_processor(ctc=False), "ctc_config": {"kind": "linear"}}, "ctc_tokenizer"),
        ({"adaptor_config": {"num_stacked_frames": 2}}, "num_stacked_frames"),
        ({"audio_tower": "lm"}, "audio_tower"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, arguments, message):
    given = {"audio_tower": parts.nest, "language_model": parts.lm, "processor": parts.processor}
    given.update({"adaptor_config": ADAPTOR, **arguments})
    given["audio_tower"] = given["audio_tower"].replace("lm", parts.lm) if given["audio_tower"] == "lm" else parts.nest
    if "adaptor_config" in arguments:
        given["adaptor_config"] = {**ADAPTOR, **arguments["adaptor_config"]}
    with pytest.raises(ValueError, match=message):
        NestAsrForConditionalGeneration.from_parts(**given)


def test_new_weights_are_torch_s_defaults_and_audio_has_the_scale_of_text(parts):
    """Not normal(0, 0.02), with which a FastConformer with CTC does not learn."""
    model = NestAsrForConditionalGeneration.from_parts(parts.nest, parts.lm, parts.processor, adaptor_config=ADAPTOR)
    for layer in (
        model.multi_modal_projector.linear_1,
        model.multi_modal_projector.layers[0].mlp.fc1,
        model.ctc_head.classifier,
    ):
        bound = 1 / math.sqrt(layer.in_features)
        assert layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound
        assert torch.isclose(layer.weight.std(), torch.tensor(bound / math.sqrt(3)), rtol=0.2)
    batch = parts.processor(audio=waves(1.0))
    encoded = model.encode_audio(batch["input_features"], batch["input_features_mask"])
    audio, _ = model.multi_modal_projector(encoded.last_hidden_state, encoded.mask)
    text = model.get_input_embeddings().weight
    assert torch.isclose(audio.square().mean().sqrt(), text.square().mean().sqrt(), rtol=0.05)


def test_without_a_ctc_head_the_language_model_trains_alone():
    processor = tiny_processor(ctc=False)
    model = tiny_model(processor)
    batch = processor(audio=waves(1.0), transcripts="一")
    assert "ctc_labels" not in batch and model(**batch).ctc_loss is None
    with pytest.raises(ValueError, match="no CTC head"):
        model.ctc_logits(batch["input_features"])
    with pytest.raises(ValueError, match="`input_features` is missing"):
        build()[1]()


def test_it_learns_what_it_hears():
    """Two recordings, same prompt: only the audio tells their texts apart."""
    torch.manual_seed(0)
    processor = tiny_processor()
    model = tiny_model(processor, adaptor={"kind": "mlp"}, text={"initializer_range": 0.1})
    audio, texts = waves(0.8, 0.8), ["一二三", "四五"]
    batch = processor(audio=audio, transcripts=texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sequences = model.generate(**processor(audio=audio))
    logits, _ = model.ctc_logits(batch["input_features"], batch["input_features_mask"])
    assert processor.decode_answers(sequences) == texts
    assert processor.ctc_tokenizer.batch_decode(logits.argmax(-1)) == texts


def test_the_nested_nest_config_type_is_ours(tmp_path):
    processor, model = build()
    model.save_pretrained(tmp_path)
    assert type(NestAsrForConditionalGeneration.from_pretrained(tmp_path).config.audio_config) is NestConfig
