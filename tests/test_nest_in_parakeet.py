"""NEST weights as the encoder of transformers' Parakeet recognisers, by plain loading; trained on recorded digits."""

import pytest
import torch
from real_digits import classes_of, features_of, read_digits
from torch.nn import functional as F
from transformers import ParakeetCTCConfig, ParakeetForCTC, ParakeetForTDT, ParakeetTDTConfig

from nest_hf import NestConfig, NestForPreTraining, NestForSequenceClassification, NestModel

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "subsampling_conv_channels": 8}
NO_DROPOUT = dict.fromkeys(("dropout", "hidden_dropout", "activation_dropout", "attention_dropout"), 0.0)
PAD, BLANK = 10, 11  # beside the ten digits


def parakeet_ctc(nest: NestModel) -> ParakeetForCTC:
    config = ParakeetCTCConfig(encoder_config=nest.config.to_dict(), vocab_size=12, pad_token_id=BLANK)
    model = ParakeetForCTC(config)
    model.encoder.load_state_dict(nest.state_dict())
    return model


def parakeet_tdt(nest: NestModel) -> ParakeetForTDT:
    config = ParakeetTDTConfig(
        encoder_config=nest.config.to_dict(),
        vocab_size=12,
        blank_token_id=BLANK,
        pad_token_id=PAD,
        num_decoder_layers=1,
        decoder_hidden_size=32,
    )
    model = ParakeetForTDT(config)
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = BLANK
    model.generation_config.pad_token_id = PAD
    # the outputs behind the vocabulary are durations
    model.generation_config.suppress_tokens = list(range(12, 12 + len(config.durations)))
    model.encoder.load_state_dict(nest.state_dict())
    return model


PARAKEETS = pytest.mark.parametrize("build", [parakeet_ctc, parakeet_tdt])


def pretrained(tmp_path) -> NestModel:
    torch.manual_seed(0)
    NestForPreTraining(NestConfig(**SMALL, **NO_DROPOUT)).save_pretrained(tmp_path / "nest")
    return NestModel.from_pretrained(tmp_path / "nest")


@PARAKEETS
@torch.no_grad()
def test_every_tensor_passes_and_the_frames_are_the_same(build, tmp_path):
    nest = pretrained(tmp_path)
    model = build(nest).eval()
    assert model.encoder.state_dict().keys() == nest.state_dict().keys()
    _, waves = read_digits("test")
    inputs = features_of(waves[:4])
    expected = nest(**inputs)
    found = model.encoder(**inputs, output_attention_mask=True)
    assert torch.equal(found.attention_mask.int(), expected.attention_mask)
    valid = expected.attention_mask.bool()
    torch.testing.assert_close(found.last_hidden_state[valid], expected.last_hidden_state[valid], atol=1e-5, rtol=1e-5)


@PARAKEETS
@torch.no_grad()
def test_they_go_back_to_nest_after_saving(build, tmp_path):
    nest = pretrained(tmp_path)
    model = build(nest).eval()
    model.save_pretrained(tmp_path / "parakeet")
    loaded = type(model).from_pretrained(tmp_path / "parakeet")
    back = NestModel(nest.config).eval()
    back.load_state_dict(loaded.encoder.state_dict())
    inputs = features_of(read_digits("test")[1][:2])
    assert torch.equal(back(**inputs).last_hidden_state, nest(**inputs).last_hidden_state)


@pytest.fixture(scope="module")
def digits():
    parts = {}
    for part in ("train", "test"):
        rows, waves = read_digits(part)
        parts[part] = (
            features_of(waves),
            torch.tensor([int(text) for text in rows["text"]])[:, None],
            classes_of(rows, "text"),
        )
    return parts


@pytest.fixture(scope="module")
def trained_nest(digits) -> NestModel:
    """An encoder that knows digits, from a classifier: what pretraining gives in hours."""
    inputs, _, classes = digits["train"]
    torch.manual_seed(0)
    model = NestForSequenceClassification(NestConfig(**SMALL, **NO_DROPOUT, num_labels=len(classes.unique())))
    learn(model, inputs, {"labels": classes}, steps=120)
    return model.eval().encoder


def learn(model, inputs: dict, targets: dict, steps: int, lr: float = 2e-3) -> float:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for step in range(steps):
        rows = torch.randperm(len(inputs["input_features"]), generator=torch.Generator().manual_seed(step))[:16]
        optimizer.zero_grad()
        batch = {name: value[rows] for name, value in (inputs | targets).items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()


@pytest.mark.slow
@PARAKEETS
def test_a_parakeet_on_a_nest_encoder_learns_to_write_digits(build, digits, trained_nest):
    """The encoder is frozen, in eval mode: what is written comes from its weights."""
    torch.manual_seed(0)
    model = build(trained_nest)
    model.encoder.requires_grad_(False)
    model.encoder.train = lambda mode=True: model.encoder  # stays in eval mode, whatever the model does
    model.encoder.eval()
    inputs, texts, _ = digits["train"]
    targets = {"labels": texts}
    if build is parakeet_tdt:
        targets["decoder_input_ids"] = F.pad(texts, (1, 0), value=BLANK)  # as ParakeetProcessor makes them
    assert learn(model, inputs, targets, steps=200, lr=5e-3) < 0.5
    inputs, texts, _ = digits["test"]
    with torch.no_grad():
        if build is parakeet_ctc:
            ids = model(**inputs).logits.argmax(-1)
            valid = trained_nest(**inputs).attention_mask.bool()
            ids = ids.masked_fill(~valid, BLANK)
            written = [[k for k in row.unique_consecutive().tolist() if k != BLANK] for row in ids]
        else:
            sequences = model.generate(**inputs, max_new_tokens=20).sequences
            written = [[k for k in row.tolist() if k < PAD] for row in sequences]
    right = sum(answer == text.tolist() for answer, text in zip(written, texts, strict=True)) / len(texts)
    assert right >= 0.7, written
