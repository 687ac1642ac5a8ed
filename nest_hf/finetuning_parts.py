"""What a finetuning run starts from: model and processor, whole or of parts, from weights or from scratch."""

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, ParakeetFeatureExtractor, PreTrainedConfig, Wav2Vec2Processor

from .asr_parts import load_audio_tower, name_of
from .configuration_nest import NestConfig
from .configuration_nest_asr import NestAsrAdaptorConfig, NestAsrConfig, NestAsrCtcConfig
from .convert_nemo import convert, read_archive
from .ctc_tokenizer import build_ctc_tokenizer
from .feature_extraction_nest import NestFeatureExtractor
from .finetuning_arguments import FinetuneModelArguments
from .modeling_nest import NestForCTC, NestModel
from .modeling_nest_asr import NestAsrForConditionalGeneration
from .parsing import check_keys
from .processing_nest_asr import NestAsrProcessor


def load_recogniser(arguments: FinetuneModelArguments, ctc_texts: list[str]):
    """
    Args:
        arguments ([`FinetuneModelArguments`]): Which model.
        ctc_texts (`list[str]`): Training texts, whose characters make a new CTC tokenizer.

    Returns:
        [`NestAsrForConditionalGeneration`] and [`NestAsrProcessor`], or [`NestForCTC`] and a `Wav2Vec2Processor`.
    """
    model, processor = _whole(arguments) if arguments.model_name_or_path else _of_parts(arguments, ctc_texts)
    model.set_attn_implementation(arguments.attn_implementation)
    return model, processor


def _whole(arguments: FinetuneModelArguments):
    source = arguments.model_name_or_path
    fields = NestConfig.get_config_dict(source)[0]
    model_type = fields.get("model_type")
    if model_type != {"asr": "nest_asr", "ctc": "nest"}[arguments.task]:
        raise ValueError(
            f"`model_name_or_path` {source} is of type {model_type!r}, which is not a whole model of `task` "
            f"{arguments.task}; give an encoder as `audio_tower`, or choose the other task."
        )
    _check_config(fields, source)
    if arguments.task == "asr":
        weights = {n: getattr(arguments, n) for n in ("ctc_weight", "lm_weight")}
        model = NestAsrForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        for name, weight in weights.items():
            if weight is not None:
                setattr(model.config, name, weight)
        processor = NestAsrProcessor.from_pretrained(source)
        processor.check(model.config)
        return model, processor
    model, info = NestForCTC.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{source} lacks {', '.join(sorted(info['missing_keys'])[:4])}: it is no NestForCTC; give it as "
            "`audio_tower`, to which a new head is added."
        )
    return model, Wav2Vec2Processor.from_pretrained(source)


def _check_config(fields: dict, source: str) -> None:
    """Refuses keys that our own configurations do not know, and that would have no effect."""
    names = ("_name_or_path", "auto_map", "custom_pipelines", "dtype", "torch_dtype", "use_cache")
    general = {*PreTrainedConfig().to_dict(), *names}
    if fields["model_type"] == "nest":
        check_keys(fields, [*NestConfig().to_dict(), *general], f"config.json of {source}")
        return
    check_keys(fields, [*NestAsrConfig().to_dict(), *general], f"config.json of {source}")
    for part, kind in (("adaptor_config", NestAsrAdaptorConfig), ("ctc_config", NestAsrCtcConfig)):
        check_keys(fields.get(part) or {}, [*kind().to_dict(), *general], f"config.json of {source}: {part}")


def _of_parts(arguments: FinetuneModelArguments, ctc_texts: list[str]):
    wants_ctc = arguments.task == "ctc" or arguments.ctc_weight != 0
    tokenizer = None
    if arguments.ctc_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(arguments.ctc_tokenizer)
    elif wants_ctc:
        tokenizer = build_ctc_tokenizer(ctc_texts)
    tower, extractor = _audio_tower(arguments)
    if arguments.task == "ctc":
        if tower.config.model_type != "nest":
            raise ValueError(f"`audio_tower` is of type {tower.config.model_type!r}; `task` ctc takes a nest encoder.")
        tower.config.vocab_size, tower.config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        model = NestForCTC(tower.config)
        model.encoder = tower
        return model, Wav2Vec2Processor(extractor, tokenizer)

    adaptor_config, ctc_config = arguments.adaptor_config or {}, arguments.ctc_config
    check_keys(adaptor_config, list(NestAsrAdaptorConfig().to_dict()), "adaptor_config")
    check_keys(ctc_config or {}, list(NestAsrCtcConfig().to_dict()), "ctc_config")
    processor = NestAsrProcessor(
        extractor,
        AutoTokenizer.from_pretrained(arguments.language_model),
        tokenizer,
        subsampling_factor=tower.config.subsampling_factor,
        num_stacked_frames=adaptor_config.get("num_stacked_frames", 1),
    )
    weights = {n: getattr(arguments, n) for n in ("ctc_weight", "lm_weight") if getattr(arguments, n) is not None}
    model = NestAsrForConditionalGeneration.from_parts(
        tower,
        arguments.language_model,
        processor,
        adaptor_config=adaptor_config,
        ctc_config=ctc_config,
        attn_implementation=arguments.attn_implementation,
        **weights,
    )
    if arguments.audio_tower:
        model.config.audio_tower_name = name_of(arguments.audio_tower)
    return model, processor


def _audio_tower(arguments: FinetuneModelArguments):
    """The encoder and its feature extractor."""
    source = arguments.audio_tower
    if source is None:
        overrides = arguments.config_overrides or {}
        check_keys(overrides, [name for name in NestConfig().to_dict()], "config_overrides")
        try:
            config = NestConfig.from_preset(arguments.preset or "large", **overrides)
        except StrictDataclassError as error:
            raise ValueError(f"config_overrides: {error}") from error
        return NestModel(config), NestFeatureExtractor(feature_size=config.num_mel_bins)
    if str(source).endswith(".nemo"):
        model, extractor = convert(*read_archive(source), source=source)
        return model.encoder, extractor
    tower, _, _ = load_audio_tower(source)
    if tower.config.model_type == "nest":
        return tower, NestFeatureExtractor.from_pretrained(source)
    return tower, ParakeetFeatureExtractor.from_pretrained(source)
