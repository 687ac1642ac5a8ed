"""Fun-ASR-Nano to this format.

    python -m nest_hf.convert_fun_asr Fun-ASR-Nano-2512 folder       # FunASR's config.yaml, model.pt, Qwen3-0.6B/
    python -m nest_hf.convert_fun_asr Fun-ASR-Nano-2512-hf folder    # transformers' FunAsrNanoForConditionalGeneration

Both become [`NestAsrForConditionalGeneration`]. transformers' checkpoint has no CTC tensors; FunASR's has them or not,
and then so does the result. FunASR feeds the language model the first ceil(T / 8) frames of the adaptor, transformers
all: `config.audio_token_divisor` is 8 or 1.

The features are those of transformers' extractor in both cases. FunASR scales the waveform by 2**15, which adds a
constant to the log-mel features that the first layer norm takes away, and dithers it with random noise.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

import torch
import yaml
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoTokenizer,
    FunAsrNanoEncoderConfig,
    FunAsrNanoFeatureExtractor,
    FunAsrNanoForConditionalGeneration,
    GenerationConfig,
)

from .asr_parts import name_of
from .asr_prompt import AUDIO_TOKEN
from .configuration_nest_asr import NestAsrConfig
from .ctc_tokenizer import read_tiktoken
from .modeling_nest_asr import NestAsrForConditionalGeneration
from .processing_nest_asr import NestAsrProcessor

logger = logging.getLogger(__name__)

PARTS = (  # within a layer
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.feed_forward\.w_([12])\.", r".mlp.fc\1."),
    (r"\.self_attn\.linear_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attn\.linear_out\.", ".self_attn.o_proj."),
    (r"\.self_attn\.fsmn_block\.", ".self_attn.fsmn.conv."),
)


def key_table(num_blocks: int, num_timestamp_blocks: int) -> tuple[tuple[str, str, int], ...]:
    """FunASR's prefix, ours, and what is added to the number in it: its three lists of layers are one here."""
    layers = "model.audio_tower.layers.{}."
    return (
        (r"audio_encoder\.encoders0\.(\d+)\.", layers, 0),
        (r"audio_encoder\.encoders\.(\d+)\.", layers, 1),
        (r"audio_encoder\.tp_encoders\.(\d+)\.", layers, num_blocks),
        (r"audio_encoder\.after_norm\.", layers + "final_layernorm.", num_blocks - 1),
        (r"audio_encoder\.tp_norm\.", layers + "final_layernorm.", num_blocks + num_timestamp_blocks - 1),
        (r"audio_adaptor\.blocks\.(\d+)\.", "model.multi_modal_projector.layers.{}.", 0),
        (r"audio_adaptor\.linear(\d)\.", "model.multi_modal_projector.linear_{}.", 0),
        (r"ctc_decoder\.blocks\.(\d+)\.", "ctc_head.decoder.layers.{}.", 0),
        (r"ctc_decoder\.linear(\d)\.", "ctc_head.decoder.linear_{}.", 0),
        (r"ctc\.ctc_lo\.", "ctc_head.classifier.", 0),
        (r"llm\.lm_head\.", "lm_head.", 0),
        (r"llm\.model\.", "model.language_model.", 0),
    )


def from_fun_asr(
    source, folder, *, revision: str | None = None, language_model: str | None = None, dtype=torch.float32
) -> NestAsrForConditionalGeneration:
    """
    Converts a Fun-ASR-Nano checkpoint and saves it to `folder`, processor included.

    Args:
        source (`str` or `Path`):
            Folder of FunASR (`config.yaml`, `model.pt`, the language model's folder) or of transformers
            (`config.json` of type `fun_asr_nano`), or the Hub id of one.
        folder (`str` or `Path`): Output; made where missing.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        language_model (`str`, *optional*):
            Folder or Hub id with configuration and tokenizer of FunASR's language model, where `source` has none.
        dtype (*optional*, defaults to `torch.float32`): Of the saved weights.

    Returns:
        [`NestAsrForConditionalGeneration`], in eval mode.

    Raises:
        `ValueError`: something is missing, a tensor is unknown or of another shape, or a setting is not implemented.
    """
    name, source = name_of(source), Path(source)
    if not source.exists():
        source = Path(snapshot_download(str(source), revision=revision))
    source = source.parent if source.name == "model.pt" else source
    if (source / "config.yaml").exists():
        config, tensors, processor = read_fun_asr(source, language_model)
    elif (source / "config.json").exists():
        config, tensors, processor = read_transformers(source, dtype)
    else:
        raise ValueError(f"`source` {source} has neither config.yaml and model.pt (FunASR) nor config.json.")
    config.language_model_name, config.prompt_ids = name, processor.prompt_ids()
    processor.check(config)

    model = NestAsrForConditionalGeneration._from_config(config, dtype=dtype).eval()
    _load(model, tensors, source)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=processor.end_token_ids, pad_token_id=processor.tokenizer.pad_token_id
    )
    if model.ctc_head is None:
        logger.info("%s has no CTC tensors: the result has no CTC head.", source)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def read_transformers(source: Path, dtype):
    """Config, tensors and processor of a `FunAsrNanoForConditionalGeneration` folder, whose names are ours."""
    model, info = FunAsrNanoForConditionalGeneration.from_pretrained(source, dtype=dtype, output_loading_info=True)
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise ValueError(f"{source} lacks {len(lost)} tensors of Fun-ASR-Nano ({', '.join(lost[:4])}).")
    adaptor = model.config.adaptor_config.to_dict()
    config = NestAsrConfig(
        audio_config=model.config.audio_config,
        adaptor_config={**_without_type(adaptor), "output_norm": False},
        text_config=model.config.text_config,
        audio_token_id=model.config.audio_token_id,
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    extractor = FunAsrNanoFeatureExtractor.from_pretrained(source)
    audio_token = tokenizer.convert_ids_to_tokens(config.audio_token_id)
    processor = NestAsrProcessor(extractor, tokenizer, audio_token=audio_token, subsampling_factor=1)
    return config, model.state_dict(), processor


def read_fun_asr(source: Path, language_model: str | None):
    """Config, tensors and processor of FunASR's folder."""
    conf = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))
    _require(conf, "audio_encoder", "SenseVoiceEncoderSmall")
    _require(conf, "audio_adaptor", "Transformer")
    encoder, adaptor = conf.get("audio_encoder_conf") or {}, conf.get("audio_adaptor_conf") or {}
    for name, only in (("sanm_shfit", 0), ("normalize_before", True), ("hub", None)):
        _require({name: encoder.get(name, only)}, name, only)
    frontend = conf.get("frontend_conf") or {}
    _require({"cmvn_file": frontend.get("cmvn_file")}, "cmvn_file", None)

    # the defaults are those of FunASR's code
    num_blocks, num_timestamp_blocks = encoder.get("num_blocks", 6), encoder.get("tp_blocks", 0)
    tensors = read_model_pt(source / "model.pt", num_blocks, num_timestamp_blocks)
    audio_config = FunAsrNanoEncoderConfig(
        num_mel_bins=frontend.get("n_mels", 80),
        num_stacked_frames=frontend.get("lfr_m", 1),
        hidden_size=encoder.get("output_size", 256),
        num_attention_heads=encoder.get("attention_heads", 4),
        intermediate_size=encoder.get("linear_units", 2048),
        num_hidden_layers=num_blocks + num_timestamp_blocks,
        num_timestamp_prediction_layers=num_timestamp_blocks,
        hidden_dropout=float(encoder.get("dropout_rate", 0.1)),
        attention_dropout=float(encoder.get("attention_dropout_rate", 0.0)),
        fsmn_kernel_size=encoder.get("kernel_size", 11),
    )
    lm_folder = _language_model_folder(source, conf, language_model)
    text_config = AutoConfig.from_pretrained(lm_folder)
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    ctc_config = ctc_tokenizer = None
    if "ctc_head.classifier.weight" in tensors:
        _require(conf, "ctc_decoder", "Transformer")
        ctc_config = _decoder_fields(conf.get("ctc_decoder_conf") or {}, default_layers=2)
        vocab_size = len(tensors["ctc_head.classifier.weight"])
        blank = (conf.get("ctc_conf") or {}).get("blank_id", vocab_size - 1)
        ctc_config.update(kind="transformer", vocab_size=vocab_size, pad_token_id=blank)
        ctc_tokenizer = _ctc_tokenizer(source, vocab_size, blank)
    divisor = 8 if adaptor.get("use_low_frame_rate", False) else 1
    config = NestAsrConfig(
        audio_config=audio_config,
        adaptor_config={
            **_decoder_fields(adaptor, default_layers=2),
            "hidden_size": text_config.hidden_size,
            "intermediate_size": text_config.hidden_size // 4,
            "output_norm": False,
        },
        ctc_config=ctc_config,
        text_config=text_config,
        audio_token_id=tokenizer.convert_tokens_to_ids(AUDIO_TOKEN),
        audio_token_divisor=divisor,
    )
    extractor = FunAsrNanoFeatureExtractor(
        feature_size=audio_config.num_mel_bins,
        sampling_rate=frontend.get("fs", 16000),
        frame_length=frontend.get("frame_length", 25),
        frame_shift=frontend.get("frame_shift", 10),
        num_frames_lfr=audio_config.num_stacked_frames,
        stride_lfr=frontend.get("lfr_n", 1),
        window=frontend.get("window", "hamming"),
    )
    processor = NestAsrProcessor(
        extractor,
        tokenizer,
        ctc_tokenizer,
        audio_token=AUDIO_TOKEN,
        subsampling_factor=1,
        num_stacked_frames=config.adaptor_config.num_stacked_frames,
        audio_token_divisor=divisor,
    )
    return config, tensors, processor


def read_model_pt(path: Path, num_blocks: int, num_timestamp_blocks: int) -> dict[str, torch.Tensor]:
    """Tensors of `model.pt` under our names; a name that the table does not have is an error."""
    if not path.exists():
        raise ValueError(f"{path} is missing; FunASR keeps the weights beside config.yaml.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for container in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(container), dict):
            state = state[container]
    table = key_table(num_blocks, num_timestamp_blocks)
    tensors = {}
    for key, tensor in state.items():
        name = our_name(key.removeprefix("module."), table)
        if ".linear_q_k_v." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace("linear_q_k_v", f"{letter}_proj")] = part
        else:
            tensors[name] = tensor
    return tensors


def our_name(key: str, table) -> str:
    """Our name of one tensor of FunASR."""
    for pattern, template, offset in table:
        if match := re.match(pattern, key):
            number = int(match[1]) if match.groups() else 0
            name = template.format(number + offset) + key[match.end() :]
            if not key.startswith("llm."):
                for part, ours in PARTS:
                    name = re.sub(part, ours, name)
            return name
    raise ValueError(f"model.pt has the tensor {key!r}, which no part of Fun-ASR-Nano as known here has.")


def _load(model, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Strict: every tensor is used, none is missing, and tied ones are equal."""
    head, embeddings = "lm_head.weight", "model.language_model.embed_tokens.weight"
    if model.config.tie_word_embeddings:
        tensors.setdefault(head, tensors.get(embeddings))
        if not torch.equal(tensors[head], tensors[embeddings]):
            raise ValueError(f"{source}: the language model ties its embeddings, but llm.lm_head differs from them.")
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{source}: {error}") from None


def _decoder_fields(conf: dict, default_layers: int) -> dict:
    """Fields of FunASR's `Transformer` adaptor, which is its CTC decoder too, with its epsilon."""
    fields = {
        "num_stacked_frames": conf.get("downsample_rate", 2),
        "projector_hidden_size": conf.get("ffn_dim", 2048),
        "num_hidden_layers": conf.get("n_layer", default_layers),
        "num_attention_heads": conf.get("attention_heads", 8),
        "hidden_dropout": float(conf.get("dropout_rate", 0.0)),
        "attention_dropout": float(conf.get("attention_dropout_rate", 0.0)),
        "layer_norm_eps": 1e-12,
    }
    if "llm_dim" in conf:
        fields.update(hidden_size=conf["llm_dim"], intermediate_size=conf["llm_dim"] // 4)
    return fields


def _ctc_tokenizer(source: Path, vocab_size: int, blank: int):
    files = sorted(source.glob("*.tiktoken"))
    if not files:
        raise ValueError(
            f"{source} has CTC tensors but no *.tiktoken file; put multilingual.tiktoken beside model.pt."
        )
    return read_tiktoken(files[0], vocab_size=vocab_size, blank=blank)


def _language_model_folder(source: Path, conf: dict, given: str | None):
    named = str((conf.get("llm_conf") or {}).get("init_param_path", ""))
    candidates = [source / named, source / Path(named).name, *sorted(p.parent for p in source.glob("*/config.json"))]
    for candidate in [given] if given else candidates:
        if given or (candidate / "config.json").exists():
            return candidate
    raise ValueError(f"{source} has no folder of the language model {named!r}; name one with `language_model`.")


def _require(conf: dict, name: str, only) -> None:
    if conf.get(name) != only:
        raise ValueError(f"`{name}` is {conf.get(name)!r} in config.yaml; only {only!r} is implemented.")


def _without_type(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if key != "model_type"}


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="folder of FunASR or of transformers, or a Hub id")
    parser.add_argument("folder", help="where the result is written")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--language_model", help="folder with config and tokenizer of FunASR's language model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    try:
        model = from_fun_asr(
            args.source,
            args.folder,
            revision=args.revision,
            language_model=args.language_model,
            dtype=getattr(torch, args.dtype),
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    head = "with" if model.ctc_head is not None else "without"
    print(f"written: {args.folder}, {sum(p.numel() for p in model.parameters()):,} parameters, {head} a CTC head")


if __name__ == "__main__":
    main()
