"""A tokenizer for a small language model: one token per character, and the marks of the chat template."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .asr_prompt import AUDIO_TOKEN, CHAT_TEMPLATE

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO_TOKEN)
PROMPT_WORDS = "中文英日\n"  # of languages that a prompt may name


def build_chat_tokenizer(texts: Iterable[str] = (), pad_token: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """
    Args:
        texts (`Iterable[str]`, *optional*): Their characters get a token each, as do those of ASCII and the template.
        pad_token (`str`, *optional*, defaults to `"<|endoftext|>"`): One of the marks.
    """
    characters = {chr(code) for code in range(32, 127)} | set(CHAT_TEMPLATE) | set(PROMPT_WORDS) | set("".join(texts))
    vocabulary = {token: index for index, token in enumerate([*CHATML, "<unk>", *sorted(characters)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m)."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=pad_token,
        eos_token="<|im_end|>",
        additional_special_tokens=list(CHATML),
    )


__all__ = ["build_chat_tokenizer"]
