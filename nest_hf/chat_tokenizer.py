"""A tokenizer for a small language model: one token per character, and those of the chat template."""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .asr_prompt import AUDIO_TOKEN, CHAT_TEMPLATE

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO_TOKEN)
PROMPT_WORDS = "中文英日\n"  # of languages that a prompt may name
# What every prompt says is a token each: a prompt of single characters would be longer than what is heard.
PHRASES = (
    "You are a helpful assistant.",
    *("system", "user", "assistant"),
    "请结合上下文信息，更加准确地完成语音转写任务。如果没有相关信息，我们会留空。",
    "**上下文信息：**",
    "热词列表：[",
    "语音转写",
    "，不进行文本规整",
)


def build_chat_tokenizer(texts: Iterable[str] = (), pad_token: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """
    Args:
        texts (`Iterable[str]`, *optional*): Their characters get a token each, as do those of ASCII and the template.
        pad_token (`str`, *optional*, defaults to `"<|endoftext|>"`): One of the marks.
    """
    characters = {chr(code) for code in range(32, 127)} | set(CHAT_TEMPLATE) | set(PROMPT_WORDS) | set("".join(texts))
    vocabulary = {token: index for index, token in enumerate([*CHATML, "<unk>", *PHRASES, *sorted(characters)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = "|".join([*map(re.escape, PHRASES), "(?m)."])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=pad_token,
        eos_token="<|im_end|>",
        additional_special_tokens=list(CHATML),
    )


__all__ = ["build_chat_tokenizer"]
