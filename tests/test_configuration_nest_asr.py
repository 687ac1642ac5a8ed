import math

import pytest
import torch
from tiny_asr import TOWERS, tower_config

from nest_hf import NestConfig
from nest_hf.configuration_nest_asr import NestAsrConfig, num_audio_tokens, num_encoder_frames
from nest_hf.modeling_nest import subsampled_length

TEXT = {"hidden_size": 48, "num_hidden_layers": 1, "vocab_size": 50}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_saved_config_comes_back(kind, tmp_path):
    config = NestAsrConfig(
        audio_config=tower_config(kind),
        adaptor_config={"kind": "mlp", "num_stacked_frames": 3, "output_norm": False},
        ctc_config={"vocab_size": 9, "pad_token_id": 8},
        text_config=TEXT,
        ctc_weight=0.7,
        language_model_revision="abc",
    )
    config.save_pretrained(tmp_path)
    loaded = NestAsrConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert type(loaded.audio_config) is type(config.audio_config)
    assert loaded.audio_config.hidden_size == 32 and loaded.adaptor_config.num_stacked_frames == 3


def test_the_nested_nest_config_is_built_by_its_own_class(monkeypatch):
    """Where this file travels as remote code, transformers does not know the type `nest`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    assert "nest" not in CONFIG_MAPPING
    config = NestAsrConfig(audio_config={"model_type": "nest", "hidden_size": 64}, text_config=TEXT)
    assert isinstance(config.audio_config, NestConfig) and config.audio_config.hidden_size == 64


def test_widths_follow_the_parts_they_belong_to():
    config = NestAsrConfig(audio_config=tower_config(), ctc_config={"vocab_size": 5}, text_config=TEXT)
    assert (config.adaptor_config.hidden_size, config.adaptor_config.intermediate_size) == (48, 12)
    assert (config.ctc_config.hidden_size, config.ctc_config.intermediate_size) == (32, 8)
    assert NestAsrConfig(text_config=TEXT).ctc_config is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_config": {"model_type": "wav2vec2"}}, "audio_config"),
        ({"adaptor_config": {"hidden_size": 64}}, "adaptor_config.hidden_size"),
        ({"adaptor_config": {"num_attention_heads": 7}}, "num_attention_heads"),
        ({"adaptor_config": {"num_stacked_frames": 0}}, "num_stacked_frames"),
        ({"adaptor_config": {"kind": "qformer"}}, "kind"),
        ({"ctc_config": {"vocab_size": 5, "pad_token_id": 5}}, "pad_token_id"),
        ({"ctc_config": {"vocab_size": 5, "num_stacked_frames": 2}}, "num_stacked_frames"),
        ({"audio_token_divisor": 0}, "audio_token_divisor"),
        ({"ctc_weight": -1}, "ctc_weight"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        NestAsrConfig(**{"text_config": TEXT, **fields})


def test_one_length_function_for_integers_and_tensors():
    lengths = torch.arange(1, 400)
    for factor in (1, 2, 8):
        assert torch.equal(num_encoder_frames(lengths, factor), subsampled_length(lengths, factor))
        assert [num_encoder_frames(int(n), factor) for n in lengths] == [math.ceil(int(n) / factor) for n in lengths]
    for stacked, divisor in ((1, 1), (3, 1), (1, 8), (2, 4)):
        expected = [math.ceil(math.ceil(int(n) / stacked) / divisor) for n in lengths]
        assert num_audio_tokens(lengths, stacked, divisor).tolist() == expected


@pytest.mark.parametrize(("kind", "frame_ms"), zip(TOWERS, (80, 80, 60), strict=True))
def test_the_duration_of_an_encoder_frame_is_that_of_its_tower(kind, frame_ms):
    config = NestAsrConfig(audio_config=tower_config(kind), text_config=TEXT)
    assert config.encoder_frame_ms == frame_ms and config.inputs_to_logits_ratio == 16 * frame_ms
