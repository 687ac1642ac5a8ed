"""A recogniser of a few thousand parameters, its tokenizers and its processor, for the tests."""

import numpy as np
import torch
from transformers import (
    FunAsrNanoEncoderConfig,
    FunAsrNanoFeatureExtractor,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    Qwen3Config,
)

from nest_hf import NestConfig, NestFeatureExtractor
from nest_hf.chat_tokenizer import build_chat_tokenizer as chatml_tokenizer
from nest_hf.configuration_nest_asr import NestAsrConfig
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration
from nest_hf.processing_nest_asr import NestAsrProcessor

TOWERS = ("nest", "parakeet_encoder", "fun_asr_nano_encoder")


def tower_config(kind="nest"):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    if kind == "nest":
        return NestConfig(**sizes, subsampling_conv_channels=8, codebook_size=16)
    if kind == "parakeet_encoder":
        return ParakeetEncoderConfig(**sizes, intermediate_size=64, subsampling_conv_channels=8)
    return FunAsrNanoEncoderConfig(
        **{**sizes, "num_hidden_layers": 3}, intermediate_size=64, num_timestamp_prediction_layers=1
    )


def feature_extractor(kind="nest"):
    kinds = dict(
        zip(TOWERS, (NestFeatureExtractor, ParakeetFeatureExtractor, FunAsrNanoFeatureExtractor), strict=True)
    )
    return kinds[kind]()


def text_config(vocab_size, **overrides):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return Qwen3Config(**{**sizes, **heads, "vocab_size": vocab_size, "initializer_range": 0.3, **overrides})


def tiny_processor(texts=("一二三四五",), kind="nest", pad_token="<|endoftext|>", ctc=True, **kwargs):
    kwargs.setdefault("subsampling_factor", 1 if kind == "fun_asr_nano_encoder" else 8)
    ctc_tokenizer = build_ctc_tokenizer(texts) if ctc else None
    return NestAsrProcessor(feature_extractor(kind), chatml_tokenizer(texts, pad_token), ctc_tokenizer, **kwargs)


def tiny_model(processor, kind="nest", adaptor=None, ctc=None, text=None, seed=0, **fields):
    torch.manual_seed(seed)
    ctc_config = None
    if processor.ctc_tokenizer is not None:
        ctc_config = {
            "vocab_size": len(processor.ctc_tokenizer),
            "pad_token_id": 0,
            "num_attention_heads": 4,
            **(ctc or {}),
        }
    adaptor = {"num_attention_heads": 4, "projector_hidden_size": 48, **(adaptor or {})}
    config = NestAsrConfig(
        audio_config=tower_config(kind),
        adaptor_config=adaptor,
        ctc_config=ctc_config,
        text_config=text_config(len(processor.tokenizer), **(text or {})),
        audio_token_id=processor.audio_token_id,
        audio_token_divisor=processor.audio_token_divisor,
        prompt_ids=processor.prompt_ids(),
        **fields,
    )
    model = NestAsrForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = processor.end_token_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


def waves(*durations_s, sampling_rate=16000, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.1, round(s * sampling_rate)).astype(np.float32) for s in durations_s]
