"""The pretrained parts of a recogniser: audio tower and language model, from a folder, the Hub or a module."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoEncoder
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
from transformers.utils.hub import resolve_revision

from .configuration_nest import NestConfig
from .modeling_nest import NestModel

TOWERS = {"nest": NestModel, "parakeet_encoder": ParakeetEncoder, "fun_asr_nano_encoder": FunAsrNanoEncoder}
PARAKEET_WITH_HEADS = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")


def build_audio_tower(config) -> PreTrainedModel:
    """An audio tower with new weights."""
    return TOWERS[config.model_type]._from_config(config)


def load_audio_tower(source: str | PreTrainedModel, revision: str | None = None, dtype=torch.float32):
    """
    Args:
        source (`str` or module):
            Folder or Hub id of a `nest` or `parakeet` checkpoint, heads or not, or of a `nest_asr` one, whose tower is
            taken; or the tower.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (*optional*, defaults to `torch.float32`): Of the loaded weights.

    Returns:
        The tower, its name and its commit (both None for a module or, the commit, for a folder).
    """
    if isinstance(source, PreTrainedModel):
        return source, None, None
    revision, commit = _resolve(source, revision)
    fields, _ = NestConfig.get_config_dict(source, revision=revision)
    model_type = fields.get("model_type")
    config = None
    if model_type == "nest_asr" and fields["audio_config"]["model_type"] in ("nest", "parakeet_encoder"):
        from .modeling_nest_asr import NestAsrForConditionalGeneration

        whole = NestAsrForConditionalGeneration.from_pretrained(source, revision=revision, dtype=dtype)
        return whole.model.audio_tower, name_of(source), commit
    if model_type in PARAKEET_WITH_HEADS:
        config = AutoConfig.from_pretrained(source, revision=revision).encoder_config
        model_type = config.model_type
    if model_type not in ("nest", "parakeet_encoder"):
        raise ValueError(
            f"`audio_tower` {source} is of type {model_type!r}; pass a nest, nest_asr or parakeet checkpoint, or the "
            "module. convert_fun_asr.py converts Fun-ASR-Nano as a whole."
        )
    given = {"config": config} if config is not None else {}
    tower = _load(TOWERS[model_type], source, revision, dtype, **given)
    return tower, name_of(source), commit


def load_language_model(source: str | PreTrainedModel, revision: str | None = None, dtype=torch.float32):
    """As [`load_audio_tower`], for any causal language model with its head."""
    if isinstance(source, PreTrainedModel):
        model, name, commit = source, None, None
    else:
        revision, commit = _resolve(source, revision)
        model, name = _load(AutoModelForCausalLM, source, revision, dtype), name_of(source)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or model.base_model is model:
        raise ValueError(
            f"`language_model` is a {type(model).__name__}; pass a causal language model whose head is linear and has "
            "no bias."
        )
    return model, name, commit


def name_of(source) -> str:
    """The Hub id, or the last part of a path, whose rest says nothing elsewhere."""
    return Path(source).name if Path(source).exists() else str(source)


def _load(model_class, source, revision, dtype, **kwargs):
    """Loads a part; a missing tensor is an error, never a new one."""
    model, info = model_class.from_pretrained(
        source, revision=revision, dtype=dtype, output_loading_info=True, **kwargs
    )
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise ValueError(
            f"{source} lacks {len(lost)} tensors of {type(model).__name__} "
            f"({', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}); pass a whole checkpoint."
        )
    return model


def _resolve(source: str, revision: str | None):
    """What to load, and its commit: a branch is pinned once, so that the recorded commit is the one loaded."""
    revision = resolve_revision(source, revision)
    return revision, getattr(revision, "resolved", revision)
