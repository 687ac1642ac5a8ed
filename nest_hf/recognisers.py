"""Recognisers of any make behind one door: ours, and those of transformers (CTC, encoder-decoder, audio LLM)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    Wav2Vec2Processor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from .decoding_settings import DecodingSettings
from .handover import fingerprint, follow_pointer
from .modeling_nest import NestForCTC
from .modeling_nest_asr import NestAsrForConditionalGeneration
from .peers import AudioLlmPeer, CtcPeer, Seq2SeqPeer, requests_transcription
from .processing_nest_asr import NestAsrProcessor
from .transcription import Transcriber

OURS = ("nest", "nest_asr")
ADAPTER_CONFIG = "adapter_config.json"
ONLY_IN_TRAINING = "masked_spec_embed"  # wav2vec2-base-960h and others were published without


class NestPeer(Transcriber):
    """Our models as the other recognisers are asked: [`Transcriber`] and a check before any work."""

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms."""
        return self.decoder.sampling_rate

    @property
    def max_duration_s(self) -> float | None:
        """Longest recording, in seconds, where windows cannot be joined for want of a CTC head."""
        joins = self.decoder.has_ctc or self.settings.long_audio == "vad"
        return None if joins else self.settings.max_window_s

    def check(
        self, *, language=None, prompt=None, itn=True, hotwords: Sequence[str] | None = None, timestamps: bool = False
    ) -> None:
        """Refuses what this model has no use for."""
        self._requests(1, language, prompt, itn)
        self._hotwords(hotwords)
        if timestamps and not self.decoder.has_ctc:
            raise ValueError(
                "`timestamps` need a CTC head with its tokenizer, and this model has none; leave them out."
            )


def open_recogniser(
    source: str,
    *,
    settings: DecodingSettings | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
):
    """
    Args:
        source (`str`):
            Folder, Hub id or stage pointer of a model: NEST-ASR, NEST-CTC, or any of transformers that transcribes; or
            of a PEFT adapter, which is merged into its base.
        settings ([`DecodingSettings`], *optional*): How audio becomes text; by the model's own head, greedy, if None.
        revision (`str`, *optional*): On the Hub.
        dtype, device (*optional*): Of the weights; float32 on the CPU by default.

    Returns:
        [`NestPeer`] for our models, else [`CtcPeer`], [`Seq2SeqPeer`] or [`AudioLlmPeer`], with the same call.

    Raises:
        ValueError: for a model that does not transcribe, or cannot be loaded.
    """
    source = follow_pointer(source)
    base, adapter = base_of(source)
    options = {"revision": revision or "main"}
    base_options = options if adapter is None else {}
    kind = _model_type(base, source, **base_options)
    if kind in OURS and adapter is None:
        return NestPeer.from_pretrained(base, settings=settings, dtype=dtype, device=device, **options)

    model_class, processor_class = _classes(kind, source)
    model, info = model_class.from_pretrained(base, dtype=dtype, output_loading_info=True, **base_options)
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(ONLY_IN_TRAINING))
    if missing:
        raise ValueError(f"{base} lacks {', '.join(missing[:4])}: it is no recogniser; finetune it first.")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, revision=revision).merge_and_unload()
    model = model.eval().to(device)
    try:
        processor = processor_class.from_pretrained(base, **base_options)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{base} has no processor that can be loaded ({str(error).splitlines()[0]}).") from error
    if kind in OURS:
        return NestPeer(model, processor, settings=settings)
    if model_class is AutoModelForCTC:
        return CtcPeer(model, processor, settings or DecodingSettings(mode="ctc"))
    if requests_transcription(processor) or model_class is AutoModelForMultimodalLM:
        return AudioLlmPeer(model, processor, settings or DecodingSettings())
    return Seq2SeqPeer(model, processor, settings or DecodingSettings())


def has_language_model(source: str, *, revision: str | None = None) -> bool:
    """Whether a model writes text by a decoder or a language model, so that beams, language and prompts mean
    something; by its configuration alone."""
    base, adapter = base_of(follow_pointer(source))
    kind = _model_type(base, source, **({} if adapter else {"revision": revision or "main"}))
    return kind != "nest" and kind not in MODEL_FOR_CTC_MAPPING_NAMES


def model_identity(source: str, *, revision: str | None = None) -> dict:
    """What tells this model from any other: its name, and a SHA-256 of weights and configuration where it is here."""
    base, adapter = base_of(follow_pointer(source))
    folders = [folder for folder in (base, adapter) if folder is not None and any(Path(folder).glob("*.safetensors"))]
    return {"model": source, "revision": revision, "sha256": [fingerprint(folder).sha256 for folder in folders]}


def base_of(source: str) -> tuple[str, str | None]:
    """The base of a PEFT adapter's folder and the folder; any other source and None."""
    path = Path(source, ADAPTER_CONFIG)
    if not path.is_file():
        return source, None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{path} names no `base_model_name_or_path`; write there what the adapter was trained on.")
    beside = Path(source, base)
    return (str(beside) if not os.path.exists(base) and beside.is_dir() else base), source


def _model_type(base: str, source: str, **options) -> str:
    try:
        return AutoConfig.from_pretrained(base, **options).model_type
    except (OSError, ValueError) as error:
        raise ValueError(f"`model` {source} cannot be loaded ({str(error).splitlines()[0]}).") from error


def _classes(kind: str, source: str) -> tuple:
    """Model and processor of a `model_type`."""
    if kind == "nest":
        return NestForCTC, Wav2Vec2Processor
    if kind == "nest_asr":
        return NestAsrForConditionalGeneration, NestAsrProcessor
    if kind in MODEL_FOR_CTC_MAPPING_NAMES:
        return AutoModelForCTC, AutoProcessor
    if kind in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return AutoModelForSpeechSeq2Seq, AutoProcessor
    if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return AutoModelForMultimodalLM, AutoProcessor
    raise ValueError(
        f"`model` {source} is of type {kind!r}, which does not transcribe; give a CTC, speech-to-text or audio LLM."
    )


__all__ = ["NestPeer", "base_of", "has_language_model", "model_identity", "open_recogniser"]
