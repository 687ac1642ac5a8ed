"""The small language model's tokenizer: the template is cheap, text is whole."""

import pytest

from nest_hf import NestAsrProcessor, NestFeatureExtractor
from nest_hf.asr_prompt import Request
from nest_hf.chat_tokenizer import build_chat_tokenizer

REQUESTS = [
    Request(),
    Request(language="中文", itn=False),
    Request(keywords=("贷款", "您好")),
    Request(prompt="您好", keywords=("贷款",)),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_every_prompt_of_the_template_has_its_tokens_and_few_of_them(request_):
    processor = NestAsrProcessor(NestFeatureExtractor(), build_chat_tokenizer(["您好贷款"]))
    (prompt,) = processor.prompts([request_])
    assert processor.tokenizer.unk_token_id not in prompt
    said = sum(map(len, (*request_.keywords, request_.prompt or "", request_.language or "")))
    assert len(prompt) <= 35 + said


@pytest.mark.parametrize("text", ["您好，贷款", "a user\n\n", "语音转写语音转", "热词列表：[您"])
def test_text_comes_back_whole(text):
    tokenizer = build_chat_tokenizer(["您好贷款"])
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_characters_of_text_are_a_token_each():
    tokenizer = build_chat_tokenizer(["您好贷款"])
    assert len(tokenizer("您好贷款", add_special_tokens=False).input_ids) == 4
