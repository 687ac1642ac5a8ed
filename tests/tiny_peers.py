"""Recognisers of transformers with a few thousand random weights, saved as their users find them."""

import json
from pathlib import Path

import torch
from tiny_asr import chatml_tokenizer, text_config, tower_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    FunAsrNanoConfig,
    FunAsrNanoFeatureExtractor,
    FunAsrNanoForConditionalGeneration,
    FunAsrNanoProcessor,
    GenerationConfig,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetProcessor,
    ParakeetTokenizer,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from nest_hf.asr_prompt import CHAT_TEMPLATE

WHISPER_TOKENS = ("<|endoftext|>", "<|startoftranscript|>", "<|zh|>", "<|en|>", "<|transcribe|>", "<|translate|>",
                  "<|notimestamps|>")  # fmt: skip


def wav2vec2(folder: Path, *, takes_mask: bool = True) -> str:
    """A CTC model over digits; without a mask as wav2vec2-base, with one as wav2vec2-large-lv60."""
    folder.mkdir(parents=True)
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", *"0123456789"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), pad_token="<pad>", unk_token="<unk>", bos_token=None, eos_token=None
    )
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary), pad_token_id=0, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,) * 7, feat_extract_norm="layer" if takes_mask else "group",
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, initializer_range=0.5,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=takes_mask)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return str(folder)


def parakeet(folder: Path) -> str:
    """A CTC model with a fast tokenizer, whose blank is the last class."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", *"0123456789", "<pad>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = ParakeetTokenizer(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    torch.manual_seed(0)
    encoder = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 32,
               "subsampling_conv_channels": 8}  # fmt: skip
    config = ParakeetCTCConfig(
        vocab_size=len(vocabulary), pad_token_id=vocabulary["<pad>"], encoder_config=encoder, initializer_range=0.5
    )
    model = ParakeetForCTC(config)
    for parameter in model.ctc_head.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    ParakeetProcessor(ParakeetFeatureExtractor(), tokenizer).save_pretrained(folder)
    return str(folder)


def qwen2_audio(folder: Path) -> str:
    """An audio LLM without words of its own for transcription: a chat template is all it has."""
    tokenizer = chatml_tokenizer("0123456789")
    tokens = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    torch.manual_seed(0)
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
             "max_source_positions": 200, "num_mel_bins": 80}  # fmt: skip
    text = {**text_config(len(tokenizer)).to_dict(), "model_type": "qwen2"}
    config = Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    )
    model = Qwen2AudioForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    template = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'audio' %}<|audio_bos|><|AUDIO|>"
    template += "<|audio_eos|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}<|im_start|>"
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(chunk_length=4), tokenizer, chat_template=template)
    processor.save_pretrained(folder)
    return str(folder)


def whisper(folder: Path) -> str:
    """An encoder-decoder over digits, with Whisper's prompt of language and task."""
    characters = {character: index for index, character in enumerate("0123456789ABCDEF")}
    tokenizer = WhisperTokenizer(vocab=characters, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(WHISPER_TOKENS)})
    ids = dict(zip(WHISPER_TOKENS, tokenizer.convert_tokens_to_ids(list(WHISPER_TOKENS)), strict=True))
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=200,
        max_target_positions=40, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        init_std=0.5, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=True, lang_to_id={token: ids[token] for token in ("<|zh|>", "<|en|>")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"], decoder_start_token_id=start, eos_token_id=end,
        pad_token_id=end, bos_token_id=end, max_length=40,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(chunk_length=4), tokenizer).save_pretrained(folder)
    return str(folder)


def fun_asr_nano(folder: Path) -> str:
    """An audio LLM as transformers has it, with the request in its own words."""
    tokenizer = chatml_tokenizer("0123456789")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4}
    config = FunAsrNanoConfig(
        audio_config=tower_config("fun_asr_nano_encoder"),
        adaptor_config={**sizes, "intermediate_size": 8, "projector_hidden_size": 48},
        text_config=text_config(len(tokenizer)),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|object_ref_start|>"),
    )
    model = FunAsrNanoForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    FunAsrNanoProcessor(FunAsrNanoFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return str(folder)
