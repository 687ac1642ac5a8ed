"""The model card of a run, made of what the run has left in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .handover import read_record
from .lora import ADAPTER

SPEECH = "automatic-speech-recognition"
CTC, LM, MASKED = "CTC, greedy", "language model, greedy", "masked frames"
# suffix of a metric of eval_results.json -> type on the Hub, name, what is decoded, whether it is a share
METRICS = {
    "ctc_cer": ("cer", "CER", CTC, True),
    "ctc_wer": ("wer", "WER", CTC, True),
    "ctc_kwer": ("kwer", "keyword error rate", CTC, True),
    "ctc_keyword_accuracy": ("accuracy", "keyword accuracy", CTC, True),
    "keyword_accuracy": ("accuracy", "keyword accuracy", LM, True),
    "kwer": ("kwer", "keyword error rate", LM, True),
    "cer": ("cer", "CER", LM, True),
    "wer": ("wer", "WER", LM, True),
    "ctc_loss": ("loss", "CTC loss", "nats per token", False),
    "lm_loss": ("loss", "language model loss", "nats per token", False),
    "constant_accuracy": ("accuracy", "accuracy of the most frequent code", MASKED, True),
    "accuracy": ("accuracy", "accuracy", MASKED, True),
    "unigram_entropy": ("loss", "entropy of the codes", "nats", False),
    "loss": ("loss", "loss", "nats", False),
}

# architecture -> what it is, its pipeline, how it is used
KINDS = {
    "NestForPreTraining": (
        "A NEST speech encoder (FastConformer), pretrained without labels",
        "feature-extraction",
        """from nest_hf import NestFeatureExtractor, NestModel

extractor = NestFeatureExtractor.from_pretrained("{repo_id}")
model = NestModel.from_pretrained("{repo_id}")""",
    ),
    "NestForCTC": (
        "A speech recogniser: NEST encoder and CTC head",
        SPEECH,
        """import nest_hf
from transformers import pipeline

print(pipeline("automatic-speech-recognition", model="{repo_id}")("call.wav")["text"])""",
    ),
    "NestAsrForConditionalGeneration": (
        "NEST-ASR, a speech recogniser: NEST encoder, CTC head, adaptor, language model",
        SPEECH,
        """from nest_hf import Transcriber

print(Transcriber.from_pretrained("{repo_id}")("call.wav")[0].text)""",
    ),
}
LANGUAGE_MODEL = (
    "A language model that NEST-ASR can be trained with",
    "text-generation",
    """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{repo_id}")""",
)
ADAPTED = "A LoRA adapter of a NEST-ASR speech recogniser"


@dataclass(frozen=True)
class Figure:
    """One metric of one validation set, `value` in percent where it is a share."""

    dataset: str
    kind: str
    name: str
    decoding: str
    value: float
    is_share: bool


def figures(metrics: dict[str, float]) -> list[Figure]:
    """The figures among `eval_<set>_<metric>` that a card shows."""
    found = []
    for key, value in metrics.items():
        suffix = next((suffix for suffix in METRICS if key.endswith(f"_{suffix}")), None)
        if suffix is None or not key.startswith("eval_"):
            continue
        kind, name, decoding, is_share = METRICS[suffix]
        dataset = key[len("eval_") : -len(suffix) - 1] or "validation"
        found.append(Figure(dataset, kind, name, decoding, 100 * value if is_share else value, is_share))
    order = [name for _, name, _, _ in METRICS.values()]
    return sorted(found, key=lambda figure: (figure.dataset, order.index(figure.name), figure.decoding))


def lineage(record: dict | None) -> list[dict]:
    """
    The stages that led to a model, the last one first: as far as their folders are still there, or their names.

    Args:
        record (`dict`, *optional*): Of [`~handover.read_record`].
    """
    stages, seen = [], set()
    while record is not None and record.get("sha256") not in seen:
        seen.add(record.get("sha256"))
        stages.append(record)
        config = record.get("config") or {}
        parent = (record.get("parent") or {}).get("path") or config.get("audio_tower")
        if parent is None:
            break
        folder = Path(parent)
        record = read_record(folder) if folder.is_dir() else None
        if record is None:
            stages.append({"stage": (stages[-1].get("parent") or {}).get("stage"), "source": public_name(parent)})
    return stages


def public_name(source: str) -> str:
    """A Hub id as it is; of a path on this machine only the last part."""
    return source if is_hub_id(source) else Path(source).name


def is_hub_id(source: str | None) -> bool:
    return bool(source) and source.count("/") == 1 and not source.startswith((".", "/", "~")) and not _exists(source)


def _exists(source: str) -> bool:
    return Path(source).exists() or Path(source).parent.is_dir()


def model_card(folder: str | Path, *, repo_id: str, licence: str | None = None) -> ModelCard:
    """
    The card of a run's folder.

    Args:
        folder (`str`): Folder of a run that is complete.
        repo_id (`str`): Where it goes on the Hub.
        licence (`str`, *optional*): As the Hub names it, such as `apache-2.0`; the card says where none is stated.

    Returns:
        `ModelCard`: with figures as `model-index`, data, lineage and options in its text.
    """
    folder = Path(folder)
    record = read_record(folder) or {}
    config = record.get("config") or _read_yaml(folder / "config_resolved.yaml")
    results = figures(_read_json(folder / "eval_results.json"))
    is_adapter = (folder / "adapter_config.json").is_file()
    architecture = (_read_json(folder / "config.json").get("architectures") or [""])[0]
    words, pipeline_tag, code = KINDS.get(architecture, LANGUAGE_MODEL)
    base = config.get("model_name_or_path")
    if is_adapter:
        words, pipeline_tag = ADAPTED, SPEECH
    level = config.get("eval_text_level")
    name = repo_id.rpartition("/")[2]
    bases = [config.get(key) for key in ("model_name_or_path", "audio_tower", "language_model")]
    bases = [base for base in bases if is_hub_id(base)]
    data = ModelCardData(
        model_name=name,
        library_name="peft" if is_adapter else "transformers",
        license=licence,
        pipeline_tag=pipeline_tag,
        tags=["nest", "fastconformer", "speech", *(["lora"] if is_adapter or config.get("lora") else [])],
        base_model=bases or None,
        eval_results=[_eval_result(figure, level, pipeline_tag) for figure in results if figure.is_share] or None,
    )
    sections = [
        f"# {name}\n\n{words}; trained with nest_hf.{_rate(config)}",
        f"## Use\n\n{_adapter_code(repo_id, base) if is_adapter else _code(code.format(repo_id=repo_id))}",
        _results_section(results, level),
        _data_section(record),
        _lineage_section(record),
        _options_section(config, record),
        f"## Licence\n\n{licence or 'None is stated: ask whoever published this model.'}",
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def write_model_cards(folder: str | Path, *, repo_id: str, licence: str | None = None) -> None:
    """Writes `README.md` of a run's folder, and that of the adapter inside it where there is one."""
    folder = Path(folder)
    model_card(folder, repo_id=repo_id, licence=licence).save(folder / "README.md")
    if (folder / ADAPTER / "adapter_config.json").is_file():
        _adapter_card(folder, repo_id, licence).save(folder / ADAPTER / "README.md")


def _adapter_card(folder: Path, repo_id: str, licence: str | None) -> ModelCard:
    base = _read_json(folder / ADAPTER / "adapter_config.json").get("base_model_name_or_path")
    data = ModelCardData(
        library_name="peft",
        license=licence,
        tags=["lora", "nest"],
        base_model=base if is_hub_id(base) else None,
        pipeline_tag=SPEECH,
    )
    text = (
        f"# LoRA adapter of {repo_id}\n\nThe folder above holds the whole model with this adapter merged in; this is "
        f"the adapter alone, for PEFT, on {_base_words(base)}.\n\n{_adapter_code(repo_id, base, subfolder=ADAPTER)}"
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _eval_result(figure: Figure, level: str | None, task: str) -> EvalResult:
    details = figure.decoding
    if level and figure.decoding in (CTC, LM):
        details += f", normaliser {level}"
    return EvalResult(
        task_type=task,
        dataset_type=figure.dataset,
        dataset_name=figure.dataset,
        metric_type=figure.kind,
        metric_value=round(figure.value, 4),
        metric_name=f"{figure.name}, % ({details})",
    )


# --- sections -----------------------------------------------------------------------------------------------------


def _rate(config: dict) -> str:
    return f" It hears audio at {config['sampling_rate']} Hz." if config.get("sampling_rate") else ""


def _code(lines: str) -> str:
    return f"```python\n{lines}\n```"


def _base_words(base: str | None) -> str:
    return f"`{base}`" if is_hub_id(base) else f"a model that is not on the Hub (`{public_name(base or 'unknown')}`)"


def _adapter_code(repo_id: str, base: str | None, subfolder: str | None = None) -> str:
    source = base if is_hub_id(base) else "path/to/" + public_name(base or "base")
    where = f', subfolder="{subfolder}"' if subfolder else ""
    return _code(
        "from nest_hf import NestAsrForConditionalGeneration\nfrom peft import PeftModel\n\n"
        f'model = NestAsrForConditionalGeneration.from_pretrained("{source}")\n'
        f'model = PeftModel.from_pretrained(model, "{repo_id}"{where}).merge_and_unload()'
    )


def _results_section(results: list[Figure], level: str | None) -> str:
    if not results:
        return "## Results\n\nThe run had no validation set."
    decodes = any(figure.decoding in (CTC, LM) for figure in results)
    words = f"Texts are compared after `nest_hf.text.normalize(text, {level!r})`. " if decodes and level else ""
    rows = [
        f"| {figure.dataset} | {figure.name}{', %' if figure.is_share else ''} | {figure.decoding} "
        f"| {figure.value:{'.2f' if figure.is_share else '.4g'}} |"
        for figure in results
    ]
    head = ["| validation set | metric | decoding or unit | value |", "|---|---|---|---|"]
    return "\n".join(["## Results", "", f"{words}Figures are over whole sets.", "", *head, *rows])


def _data_section(record: dict) -> str:
    if not record.get("data"):
        return ""
    rows = [
        f"| {name} | {'streamed' if part['hours'] is None else format(part['hours'], '.4g')} "
        f"| {'streamed' if part['recordings'] is None else format(part['recordings'], ',')} |"
        for name, part in record["data"].items()
    ]
    return "\n".join(["## Data", "", "| set | hours | recordings |", "|---|---|---|", *rows])


def _lineage_section(record: dict) -> str:
    if not record:
        return ""
    lines = []
    for number, stage in enumerate(reversed(lineage(record)), 1):
        if "config" not in stage:
            lines.append(f"{number}. {stage['stage'] or 'start'}: `{stage['source']}`")
            continue
        train = (stage.get("data") or {}).get("train") or {}
        hours = f", {train['hours']:.4g} h" if train.get("hours") is not None else ""
        lines.append(
            f"{number}. {stage['stage']}: {stage['updates']:,} updates{hours}, sha256 `{stage['sha256'][:16]}`"
        )
    language_model = record["config"].get("language_model")
    words = f"\n\nThe language model began as `{public_name(language_model)}`." if language_model else ""
    return "\n".join(["## Lineage", "", *lines]) + words


def _options_section(config: dict, record: dict) -> str:
    names = (
        *("preset", "task", "schedule", "lr_scheduler_type", "learning_rate", "warmup_steps", "weight_decay"),
        *("per_device_train_batch_size", "batch_duration_s", "batch_budget", "budget_unit"),
        *("gradient_accumulation_steps", "bf16", "fp16", "use_muon", "trainable", "lora"),
        *("channel", "wideband_share", "seed"),
    )
    shown = {name: config[name] for name in names if config.get(name) not in (None, "", [], {}, False)}
    if shown.get("schedule") == "noam":
        shown.pop("lr_scheduler_type")
    if "batch_duration_s" in shown or "batch_budget" in shown:
        shown.pop("per_device_train_batch_size")
    if isinstance(shown.get("channel"), str):
        shown["channel"] = public_name(shown["channel"])
    if record.get("updates") is not None:
        shown["updates"] = record["updates"]
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()
    return f"## Training\n\n```yaml\n{text}\n```\n\nAll options are in `config_resolved.yaml`." if shown else ""


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


__all__ = ["figures", "lineage", "model_card", "write_model_cards"]
