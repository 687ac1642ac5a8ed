"""FunASR's two forms of a manifest's line: ChatML (`messages`) and `key` / `source` / `target`."""

import re

SPEECH = re.compile(r"<\|startofspeech\|>(.*?)<\|endofspeech\|>", re.DOTALL)
SYSTEM = "You are a helpful assistant."
PROMPT = "语音转写："
# Published files count lengths in several units (frames, characters, words, tokens): ours are measured.
UNTRUSTED = ("speech_length", "text_length", "source_len", "target_len")


def is_funasr(record: dict) -> bool:
    """Whether a record without a path of its own is one of FunASR's."""
    return "messages" in record or ("source" in record and ("target" in record or "key" in record))


def from_funasr(record: dict) -> dict:
    """A NeMo manifest's record of what a FunASR line says; a ValueError tells what is wrong with it."""
    rest = {key: value for key, value in record.items() if key not in UNTRUSTED}
    if "messages" in rest:
        rest |= _from_messages(rest.pop("messages"))
    else:
        rest |= {"audio_filepath": rest.pop("source"), "text": rest.pop("target", None)}
    if "key" in rest:
        rest.setdefault("id", rest.pop("key"))
    return rest


def _from_messages(messages) -> dict:
    by_role: dict[str, str] = {}
    for message in messages if isinstance(messages, list) else [None]:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError("`messages` must be a list of `role` and `content`, both strings")
        if message["role"] in by_role:
            raise ValueError(f"`messages` has several turns of `{message['role']}` where one recording is due")
        by_role[message["role"]] = message["content"]
    speech = SPEECH.findall(by_role.get("user", ""))
    if len(speech) != 1 or not re.match("![^!]", speech[0]):
        raise ValueError("`messages` must name one recording: <|startofspeech|>!path<|endofspeech|>")
    return {
        "audio_filepath": speech[0][1:],
        "text": by_role.get("assistant"),
        "system": by_role.get("system"),
        "prompt": SPEECH.sub("", by_role["user"]),
    }


def to_messages(path: str, text: str | None, *, system: str, prompt: str) -> list[dict[str, str]]:
    """The turns of one recording; a recording without text gets no answer."""
    turns = [("system", system), ("user", f"{prompt}<|startofspeech|>!{path}<|endofspeech|>"), ("assistant", text)]
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def num_fbank_frames(duration_s: float) -> int:
    """FunASR's `speech_length`: whole windows of 25 ms, one every 10 ms."""
    return max(0, int((duration_s * 1000 - 25) // 10 + 1))
