"""Writes docs/api.md from the docstrings.

    python docs/make_api.py

A test fails where the page is not what this writes. A new public name of `nest_hf` or `nest_hf.data` has to be put
into one of the groups below.
"""

import importlib
import inspect
import re
import textwrap
from pathlib import Path

from transformers import PreTrainedConfig

PAGE = Path(__file__).with_name("api.md")
GROUPS = {
    "Models": """
        nest_hf.NestConfig nest_hf.NestPreTrainedModel nest_hf.NestModel nest_hf.aggregate_layers
        nest_hf.NestForPreTraining nest_hf.NestForPreTrainingOutput nest_hf.NestForCTC
        nest_hf.NestForSequenceClassification nest_hf.NestForXVector nest_hf.NestForAudioFrameClassification
        nest_hf.NestAsrConfig nest_hf.NestAsrModel nest_hf.NestAsrForConditionalGeneration
        nest_hf.convert_nemo.from_nemo nest_hf.convert_nemo.to_nemo nest_hf.convert_fun_asr.from_fun_asr
    """,
    "Features and processors": """
        nest_hf.NestFeatureExtractor nest_hf.NestAsrProcessor nest_hf.ctc_tokenizer.build_ctc_tokenizer
        nest_hf.chat_tokenizer.build_chat_tokenizer
    """,
    "Decoding": """
        nest_hf.Transcriber nest_hf.Transcription nest_hf.DecodingSettings nest_hf.NestSpeechRecognitionPipeline
        nest_hf.guards.GuardSettings nest_hf.guards.GuardDecision nest_hf.hotwords.HotwordFilter
        nest_hf.timestamps.TimedText
    """,
    "Data": """
        nest_hf.data.load_speech_dataset nest_hf.data.load_with_report nest_hf.data.LoadReport
        nest_hf.data.decode_audio nest_hf.data.DecodedAudio nest_hf.data.AudioError nest_hf.data.audio_duration
        nest_hf.data.row_lengths nest_hf.data.filter_annotation_errors nest_hf.data.split_by_group
        nest_hf.data.write_nemo_manifest nest_hf.data.write_chatml_manifest nest_hf.data.TokenBudgetBatchSampler
        nest_hf.data.ExampleKey nest_hf.data.padding_share nest_hf.data.PretrainingDataset
        nest_hf.data.PretrainingCollator nest_hf.data.StreamedBatches
    """,
    "Telephone channel and noise": """
        nest_hf.data.TelephoneChannel nest_hf.data.ChannelDraw nest_hf.data.telephone.g711
        nest_hf.data.SpeakerNoise nest_hf.data.MultiSpeakerNoise nest_hf.data.NoiseSource
    """,
    "Training": """
        nest_hf.trainer.NestTrainer nest_hf.finetuning.FinetuneTrainer nest_hf.freezing.FreezingCallback
        nest_hf.lora.LoraSettings nest_hf.lora.add_lora nest_hf.lora.load_adapted nest_hf.best_models.BestModels
        nest_hf.stages.read_recipe nest_hf.stages.run_recipe
    """,
    "Text and metrics": """
        nest_hf.text.normalize nest_hf.metrics.CharacterErrorRate nest_hf.metrics.MixedErrorRate
        nest_hf.metrics.WordErrorRate nest_hf.metrics.KeywordErrorRate
    """,
}
GROUPS = {title: names.split() for title, names in GROUPS.items()}
LISTS = ("Args:", "Attributes:", "Raises:")  # sections that have an item per line, not a paragraph
WIDTH = 110


def make_page() -> str:
    lines = [
        "# API", "",
        "Made by `python docs/make_api.py` from the docstrings; change those. A name without a group of its own is "
        "in its module, with a docstring there.", "",
    ]  # fmt: skip
    entries = {title: {name.rpartition(".")[2]: name for name in names} for title, names in GROUPS.items()}
    known = {short for names in entries.values() for short in names}
    for title, names in entries.items():
        lines.append(f"- {title}: " + ", ".join(f"[{short}](#{short.lower()})" for short in names))
    for title, names in entries.items():
        lines += ["", f"## {title}"]
        for short, name in names.items():
            lines += ["", f"### {short}", *_entry(find(name), name, known)]
            if inspect.isclass(find(name)):
                for method, function in _methods(find(name)):
                    lines += ["", f"#### {short}.{method}", *_entry(function, f"{short}.{method}", known)]
    return "\n".join(lines) + "\n"


def find(name: str):
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _methods(cls: type) -> list[tuple[str, object]]:
    """What a class itself has and describes, and only that."""
    own = {name: getattr(cls, name) for name in vars(cls) if name == "__call__" or not name.startswith("_")}
    return [(name, item) for name, item in own.items() if inspect.isroutine(item) and item.__doc__]


def _entry(item, name: str, known: set[str]) -> list[str]:
    return ["", "```python", *_signature(item, name), "```", "", *_markdown(inspect.cleandoc(item.__doc__), known)]


def _signature(item, name: str) -> list[str]:
    """Without types, which are in the docstring."""
    parameters = [p for p in inspect.signature(item).parameters.values() if p.name != "self"]
    if inspect.isclass(item) and issubclass(item, PreTrainedConfig):  # not what every configuration has
        inherited = inspect.signature(PreTrainedConfig).parameters
        parameters = [p for p in parameters if p.name not in inherited]
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    text = name + str(inspect.Signature(parameters))
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _markdown(doc: str, known: set[str]) -> list[str]:
    """A docstring in the Hugging Face form, its sections as lists."""
    lines, section, in_code, is_fenced = [], "", False, True
    for line in doc.split("\n"):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith("```"):
            in_code = not in_code
            lines.append(text)
        elif not in_code and text.startswith(">>>"):  # an example without a fence
            in_code, is_fenced = True, False
            lines += ["", "```python", text]
        elif in_code and (is_fenced or text):
            lines.append(line if is_fenced else line[4:])
        elif in_code:
            in_code, is_fenced = False, True
            lines += ["```", ""]
        elif not indent and re.fullmatch(r"[A-Z][^`]*:|Returns, .*:", text):
            section = text
            lines += [f"**{text[:-1]}**"]
            if text in LISTS:
                lines.append("")
        elif indent == 4 and section in LISTS and (section != "Raises:" or re.match(r"`?\w+`?:", text)):
            lines.append("- " + _linked(text, known))
        elif section in LISTS and indent:
            lines.append("  " + _linked(text, known))
        else:
            section = section if indent or not text else ""
            lines.append(_linked(text, known))
    if in_code:
        lines.append("```")
    while not lines[-1]:
        lines.pop()
    return lines


def _linked(text: str, known: set[str]) -> str:
    """`[`~module.Name`]` as a link where the page has it, else as code; `**kwargs` is no emphasis."""

    def link(match: re.Match) -> str:
        target = next((part for part in match[1].split(".") if part in known), None)
        return f"[`{match[1]}`](#{target.lower()})" if target else f"`{match[1]}`"

    return re.sub(r"\[`~?([^`]+)`\]", link, re.sub(r"^\*\*(?=\w)", r"\\*\\*", text))


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
    print(PAGE)
