"""Heads of speech classification: Wav2Vec2's losses, padding that changes nothing, freezing, and real digits."""

import numpy as np
import pytest
import torch
from real_digits import classes_of, features_of, read_digits
from torch.nn import functional as F
from transformers import Wav2Vec2Config, pipeline
from transformers.models.wav2vec2 import modeling_wav2vec2

from nest_hf import (
    NestConfig,
    NestFeatureExtractor,
    NestForAudioFrameClassification,
    NestForSequenceClassification,
    NestForXVector,
)
from nest_hf.modeling_nest_heads import AMSoftmaxLoss, TDNNLayer, mean_and_deviation

HEADS = (NestForSequenceClassification, NestForAudioFrameClassification, NestForXVector)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "subsampling_conv_channels": 8,
    "classifier_proj_size": 16,
    "tdnn_dim": [16, 24],
    "tdnn_kernel": [5, 3],
    "tdnn_dilation": [1, 2],
    "xvector_output_dim": 12,
    "num_labels": 5,
}
NO_DROPOUT = dict.fromkeys(("dropout", "hidden_dropout", "activation_dropout", "attention_dropout"), 0.0)


def tiny(cls, seed: int = 0, **config):
    torch.manual_seed(seed)
    return cls(NestConfig(**{**SMALL, **config})).eval()


def recordings(frames=(96, 61, 24), total: int = 96) -> dict[str, torch.Tensor]:
    valid = torch.arange(total) < torch.tensor(frames)[:, None]
    features = torch.zeros(len(frames), total, 80)
    for row, n in enumerate(frames):
        features[row, :n] = torch.randn(n, 80, generator=torch.Generator().manual_seed(row))
    return {"input_features": features, "attention_mask": valid.int()}


def labels_for(cls) -> torch.Tensor:
    labels = torch.tensor([0, 4, 2])
    return labels[:, None].repeat(1, 12) if cls is NestForAudioFrameClassification else labels


# --- against Wav2Vec2 ------------------------------------------------------------------------------------------------


def test_margin_loss_equals_wav2vec2s():
    torch.manual_seed(0)
    ours, theirs = AMSoftmaxLoss(8, 5), modeling_wav2vec2.AMSoftmaxLoss(8, 5)
    theirs.load_state_dict(ours.state_dict())
    embeddings, labels = torch.randn(7, 8), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    torch.testing.assert_close(ours(embeddings, labels), theirs(embeddings, labels))


def test_names_of_the_head_are_wav2vec2s():
    fields = ("num_labels", "tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim", "classifier_proj_size")
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16, use_weighted_layer_sum=True,
        **{name: SMALL[name] for name in fields},
    )  # fmt: skip
    for cls in HEADS:
        theirs = getattr(modeling_wav2vec2, cls.__name__.replace("Nest", "Wav2Vec2"))(config).state_dict()
        ours = tiny(cls, use_weighted_layer_sum=True).state_dict()
        shapes = {
            name: tensor.numel() for name, tensor in theirs.items() if not name.startswith("wav2vec2.")
        }  # a TDNN's kernel is a flat matrix there
        assert {name: t.numel() for name, t in ours.items() if not name.startswith("encoder.")} == shapes
        for name in (*fields, "use_weighted_layer_sum"):
            assert type(getattr(NestConfig(), name)) is type(getattr(Wav2Vec2Config(), name))
            if name != "num_labels":
                assert getattr(NestConfig(), name) == getattr(Wav2Vec2Config(), name)


@torch.no_grad()
def test_tdnn_layer_equals_wav2vec2s_inside():
    """Away from the edges, which Wav2Vec2's loses and ours fills with zeros."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(tdnn_dim=[6, 8], tdnn_kernel=[5, 3], tdnn_dilation=[1, 2])
    theirs, ours = modeling_wav2vec2.TDNNLayer(config, 1), TDNNLayer(6, 8, 3, 2)
    ours.kernel.weight.copy_(theirs.kernel.weight.view(8, 3, 6).transpose(1, 2))
    ours.kernel.bias.copy_(theirs.kernel.bias)
    frames = torch.randn(2, 20, 6)
    whole = ours(frames, torch.ones(2, 20, dtype=torch.bool))
    assert whole.shape == (2, 20, 8)
    torch.testing.assert_close(whole[:, 2:-2], theirs(frames))


@torch.no_grad()
def test_statistics_are_those_of_the_valid_frames():
    frames, valid = torch.randn(2, 9, 4), torch.arange(9) < torch.tensor([9, 3])[:, None]
    mean, deviation = mean_and_deviation(frames, valid)
    torch.testing.assert_close(mean[1], frames[1, :3].mean(0))
    torch.testing.assert_close(deviation[1], frames[1, :3].std(0, correction=0))
    torch.testing.assert_close(deviation[0], frames[0].std(0, correction=0))


# --- the learned sum of the layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", HEADS)
@torch.no_grad()
def test_the_sum_of_layers_takes_the_layer_that_its_weights_choose(cls):
    weighted = tiny(cls, use_weighted_layer_sum=True)
    plain = tiny(cls)
    assert "layer_weights" not in dict(plain.named_parameters())
    plain.load_state_dict({k: v for k, v in weighted.state_dict().items() if k != "layer_weights"})
    torch.testing.assert_close(weighted.layer_weights, torch.full((3,), 1 / 3))
    output = "embeddings" if cls is NestForXVector else "logits"
    inputs = recordings()
    assert not torch.allclose(weighted(**inputs)[output], plain(**inputs)[output], atol=1e-4)
    weighted.layer_weights.copy_(torch.tensor([0.0, 0.0, 40.0]))  # a softmax of (0, 0, 1): the last layer
    torch.testing.assert_close(weighted(**inputs)[output], plain(**inputs)[output])
    assert weighted(**inputs).hidden_states is None
    assert len(weighted(**inputs, output_hidden_states=True).hidden_states) == 3


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", HEADS)
@torch.no_grad()
def test_padding_changes_neither_output_nor_loss(cls):
    model, frames = tiny(cls, use_weighted_layer_sum=True), (96, 61, 24)
    labels = labels_for(cls)
    short, long = recordings(frames), recordings(frames, total=160)
    valid = long["attention_mask"].bool()
    long["input_features"] = torch.where(valid[..., None], long["input_features"], 7.0)  # whatever lies there
    more = F.pad(labels, (0, 8), value=3) if labels.dim() == 2 else labels  # and whatever its labels are
    ours, other = model(**short, labels=labels), model(**long, labels=more)
    torch.testing.assert_close(other.loss, ours.loss, atol=1e-5, rtol=1e-5)
    output = "embeddings" if cls is NestForXVector else "logits"
    for row, n in enumerate((12, 8, 3)):
        single = model(short["input_features"][row : row + 1, : frames[row]])[output][0]
        rows = [out[output][row] if cls is not NestForAudioFrameClassification else out[output][row, :n]
                for out in (ours, other)]  # fmt: skip
        for result in rows:
            torch.testing.assert_close(result, single, atol=1e-5, rtol=1e-5)


def test_a_recording_of_one_frame_has_an_embedding_and_gradients():
    model = tiny(NestForXVector).train()
    out = model(**recordings((8, 4)), labels=torch.tensor([0, 1]))
    out.loss.backward()
    assert out.embeddings.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_labels_of_frames_are_indices_or_one_hot():
    model, inputs = tiny(NestForAudioFrameClassification), recordings()
    classes = torch.arange(36).view(3, 12) % 5
    loss = model(**inputs, labels=classes).loss
    assert torch.equal(model(**inputs, labels=F.one_hot(classes, 5).float()).loss, loss)
    valid = torch.arange(12) < torch.tensor([12, 8, 3])[:, None]
    logits = model(**inputs).logits
    torch.testing.assert_close(loss, F.cross_entropy(logits[valid], classes[valid]))
    some = classes.masked_fill(torch.arange(12) > 1, -100)
    torch.testing.assert_close(
        model(**inputs, labels=some).loss, F.cross_entropy(logits[:, :2].flatten(0, 1), classes[:, :2].flatten())
    )
    with pytest.raises(ValueError, match=r"`labels` has shape \(3, 11\) for \(3, 12\) encoder frames"):
        model(**inputs, labels=classes[:, :11])


def test_layers_of_the_xvector_must_be_described_alike():
    with pytest.raises(ValueError, match="have 2, 3 and 2 entries"):
        tiny(NestForXVector, tdnn_kernel=[5, 3, 1])


# --- freezing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", HEADS)
def test_a_frozen_encoder_does_not_change_in_training(cls):
    model = tiny(cls, use_weighted_layer_sum=True)
    model.freeze_base_model()
    model.train()
    assert not model.encoder.training and model.classifier.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**recordings(), labels=labels_for(cls)).loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.layer_weights, before["layer_weights"])
    assert not model.eval().training and model.train().training


def test_a_frozen_subsampling_leaves_the_blocks_to_train():
    model = tiny(NestForSequenceClassification).train()
    model.freeze_feature_encoder()
    model(**recordings(), labels=labels_for(NestForSequenceClassification)).loss.backward()
    trains = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any("subsampling" in name for name in trains) and "encoder.layers.0.conv.norm.weight" in trains


# --- real recordings -------------------------------------------------------------------------------------------------


def train(model, inputs, labels, steps: int, lr: float = 2e-3) -> None:
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:16]
        optimizer.zero_grad()
        model(**{name: value[rows] for name, value in inputs.items()}, labels=labels[rows]).loss.backward()
        optimizer.step()
    model.eval()


def test_the_audio_classification_pipeline_names_the_digit(tmp_path):
    names = {index: digit for index, digit in enumerate("016")}
    model = tiny(
        NestForSequenceClassification, id2label=names, label2id={v: k for k, v in names.items()}, num_labels=3
    )
    model.save_pretrained(tmp_path)
    NestFeatureExtractor().save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path))
    rows, waves = read_digits("test")
    answers = classify([wave for wave in waves[:3]], top_k=None)
    with torch.no_grad():
        expected = model(**features_of(waves[:3])).logits.softmax(-1)
    for answer, scores in zip(answers, expected, strict=True):
        found = {row["label"]: row["score"] for row in answer}
        assert found == pytest.approx({names[i]: s for i, s in enumerate(scores.tolist())}, abs=1e-4)


@pytest.fixture(scope="module")
def digits():
    parts = {}
    for part in ("train", "test"):
        rows, waves = read_digits(part)
        parts[part] = (features_of(waves), {column: classes_of(rows, column) for column in ("text", "speaker")}, waves)
    return parts


@pytest.fixture(scope="module")
def classifiers(digits):
    """Trained on digits, and on speakers."""
    trained = {}
    inputs, labels, _ = digits["train"]
    for label in ("text", "speaker"):
        num_labels = len(labels[label].unique())
        model = tiny(NestForSequenceClassification, num_labels=num_labels, use_weighted_layer_sum=True, **NO_DROPOUT)
        train(model, inputs, labels[label], steps=150 if len(labels[label]) < 100 else 600)
        trained[label] = model
    return trained


@torch.no_grad()
def accuracy(model, inputs, labels) -> float:
    return (model(**inputs).logits.argmax(-1) == labels).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("label, on_new_takes", [("text", 0.8), ("speaker", 0.4)])
def test_a_classifier_learns_digits_and_speakers(digits, classifiers, label, on_new_takes):
    """By chance 0.33 and 0.2; features are normalised per recording, which takes much of the speaker away."""
    for part, least in (("train", 0.9), ("test", on_new_takes)):
        inputs, labels, _ = digits[part]
        assert accuracy(classifiers[label], inputs, labels[label]) > least, part


@pytest.mark.slow
def test_a_trained_encoder_needs_a_new_head_only(digits, classifiers, tmp_path):
    encoder = classifiers["text"].encoder
    encoder.save_pretrained(tmp_path)
    inputs, labels, _ = digits["train"]
    num_labels = len(labels["text"].unique())
    model = NestForSequenceClassification.from_pretrained(tmp_path, num_labels=num_labels, use_weighted_layer_sum=True)
    model.freeze_base_model()
    train(model, inputs, labels["text"], steps=100, lr=1e-2)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name
    inputs, labels, _ = digits["test"]
    assert accuracy(model, inputs, labels["text"]) > 0.8


@pytest.mark.slow
def test_xvectors_of_one_speaker_lie_closer_than_those_of_two(digits):
    inputs, labels, _ = digits["train"]
    model = tiny(NestForXVector, **NO_DROPOUT)
    train(model, inputs, labels["speaker"], steps=150)

    @torch.no_grad()
    def separation(part):
        """How often two recordings of one speaker are more alike than two of two; 0.5 by chance."""
        inputs, labels, _ = digits[part]
        vectors, speaker = F.normalize(model(**inputs).embeddings, dim=-1), labels["speaker"]
        same, other = speaker[:, None] == speaker, ~torch.eye(len(speaker), dtype=torch.bool)
        cosines = vectors @ vectors.T
        return (cosines[same & other][:, None] > cosines[~same]).float().mean().item()

    assert separation("train") > 0.95 and separation("test") > 0.58


@pytest.mark.slow
def test_frames_tell_speech_from_silence(digits):
    """Digits between silences: the labels follow from where they were put."""

    def with_silence(waves):
        rng = np.random.default_rng(0)
        joined, speech = [], []
        for wave in waves:
            wave = wave[: len(wave) // 1280 * 1280]
            before, after = rng.integers(2, 8, 2)
            parts = [np.zeros(before * 1280, np.float32), wave, np.zeros(after * 1280, np.float32)]
            joined.append(np.concatenate(parts) + 1e-3 * rng.standard_normal(sum(map(len, parts))).astype(np.float32))
            speech.append([0] * before + [1] * (len(wave) // 1280) + [0] * after)
        inputs = features_of(joined)
        labels = torch.full((len(waves), inputs["input_features"].shape[1] // 8), -100)
        for row, values in zip(labels, speech, strict=True):
            row[: len(values)] = torch.tensor(values)
        return inputs, labels

    (inputs, labels), (test_inputs, test_labels) = (with_silence(digits[part][2]) for part in ("train", "test"))
    model = tiny(NestForAudioFrameClassification, num_labels=2, **NO_DROPOUT)
    train(model, inputs, labels, steps=100)
    with torch.no_grad():
        found = model(**test_inputs).logits.argmax(-1)
    known = test_labels != -100
    assert (found == test_labels)[known].float().mean() > 0.9
    assert 0.2 < test_labels[known].float().mean() < 0.6
