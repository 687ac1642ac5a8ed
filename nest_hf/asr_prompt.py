"""The prompt of the recogniser: one chat template, in training and in inference."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers.audio_utils import prepare_language_inputs
from transformers.models.fun_asr_nano.processing_fun_asr_nano import LANGUAGE_CODE_TO_NAME
from transformers.processing_utils import prepare_keyword_inputs, prepare_prompt_input

AUDIO_TOKEN = "<|object_ref_start|>"
# The request in the words that Fun-ASR-Nano was trained with. A message holds parts of the types `audio`, `text`
# (context), `keywords`, `language` and `itn`, those of transformers' fun_asr_nano and one more.
CHAT_TEMPLATE = """\
{%- macro part(message, type) %}
    {%- for item in message.content if item.type == type %}{{ item[type] }}{% endfor %}
{%- endmacro %}
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- set types = message.content | map(attribute='type') | list %}
        {%- if 'text' in types or 'keywords' in types %}
            {{- '请结合上下文信息，更加准确地完成语音转写任务。如果没有相关信息，我们会留空。\\n\\n\\n' }}
            {{- '**上下文信息：**\\n\\n\\n' }}
            {%- if 'text' in types %}{{ part(message, 'text') + '\\n' }}{% endif %}
            {%- for item in message.content if item.type == 'keywords' %}
                {{- '热词列表：[' + item.keywords | join(', ') + ']\\n' }}
            {%- endfor %}
        {%- endif %}
        {{- '语音转写' }}
        {%- if 'language' in types %}{{ '成' + part(message, 'language') }}{% endif %}
        {%- if part(message, 'itn') == 'False' %}{{ '，不进行文本规整' }}{% endif %}
        {{- '：' }}
        {%- for item in message.content if item.type == 'audio' %}<|object_ref_start|>{% endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


# what the template makes of a message with audio, its placeholder left out
REQUEST = re.compile(
    r"(?:请结合上下文信息.*?\*\*上下文信息：\*\*\s*(?P<prompt>.*?)\s*(?:热词列表：\[(?P<keywords>[^\]]*)\]\s*)?)?"
    r"语音转写(?:成(?P<language>\w+?))?(?P<raw>，不进行文本规整)?[：:]?",
    re.DOTALL,
)


class Request(NamedTuple):
    """
    What the prompt of a recording says.

    Attributes:
        language (`str`, *optional*): As the template writes it: 中文, 英文 or 日文.
        prompt (`str`, *optional*): Context that may help.
        keywords (`tuple[str, ...]`): Hotwords.
        itn (`bool`): Numbers and units as written, not as spoken.
    """

    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    itn: bool = True


def transcription_requests(batch_size: int, language=None, prompt=None, keywords=None, itn=True) -> list[Request]:
    """One request per recording, of what is given once for all or as a list with one, or None, for each."""
    languages = prepare_language_inputs(language, batch_size, LANGUAGE_CODE_TO_NAME, return_code=False)
    prompts = prepare_prompt_input(prompt, batch_size, input_name="prompt")
    keyword_lists = [tuple(words or ()) for words in prepare_keyword_inputs(keywords, batch_size)]
    itns = [itn] * batch_size if isinstance(itn, bool) else list(itn)
    if len(itns) != batch_size:
        raise ValueError(f"`itn` has {len(itns)} values for {batch_size} recordings; pass one, or one for each.")
    return [Request(*fields) for fields in zip(languages, prompts, keyword_lists, itns, strict=True)]


def request_in_prompt(text: str) -> Request:
    """The request of a prompt in the words of the template, as FunASR's data have it; any other text is context."""
    match = REQUEST.fullmatch(text)
    if match is None:
        return Request(prompt=text or None)
    (request,) = transcription_requests(1, match["language"], match["prompt"] or None, itn=match["raw"] is None)
    words = (word.strip() for word in (match["keywords"] or "").split(","))
    return request._replace(keywords=tuple(word for word in words if word))


def request_arguments(requests: Sequence[Request]) -> dict[str, list]:
    """Requests as [`NestAsrProcessor`] takes them: `language`, `prompt`, `keywords` and `itn`, one per recording."""
    columns = zip(*requests, strict=True)
    return {
        name: [list(v) if name == "keywords" else v for v in values]
        for name, values in zip(Request._fields, columns, strict=True)
    }
