"""Arguments of finetuning, as dataclasses."""

from dataclasses import dataclass, field

from .arguments import NestTrainingArguments
from .configuration_nest import PRESETS
from .data.batching import MIX_TECHNIQUES
from .data.lengths import UNITS
from .data.spec_augment import SpecAugment
from .handover import follow_pointer
from .lora import LoraSettings
from .text import LEVELS


@dataclass
class FinetuneModelArguments:
    """Which model is trained: a whole one, or its parts."""

    task: str = field(
        default="asr", metadata={"help": "`asr`: NEST-ASR, CTC and a language model; `ctc`: NestForCTC."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Go on from this whole model: a folder, Hub id or stage pointer."}
    )
    audio_tower: str | None = field(
        default=None, metadata={"help": "Encoder: folder or Hub id of a NEST, NEST-ASR or Parakeet model, or .nemo."}
    )
    language_model: str | None = field(default=None, metadata={"help": "Causal language model: folder or Hub id."})
    preset: str | None = field(
        default=None, metadata={"help": f"Encoder from scratch, where none is given: {', '.join(PRESETS)}."}
    )
    config_overrides: dict | None = field(
        default=None, metadata={"help": "Fields of NestConfig that differ, for an encoder from scratch."}
    )
    adaptor_config: dict | None = field(default=None, metadata={"help": "Fields of NestAsrAdaptorConfig."})
    ctc_config: dict | None = field(default=None, metadata={"help": "Fields of NestAsrCtcConfig: kind and sizes."})
    ctc_tokenizer: str | None = field(
        default=None, metadata={"help": "Folder of a CTC tokenizer; else made of the characters of the training text."}
    )
    ctc_weight: float | None = field(default=None, metadata={"help": "Of the CTC loss (0.3); 0: no CTC loss."})
    lm_weight: float | None = field(default=None, metadata={"help": "Of the language model's loss (1.0)."})
    trainable: list[str] | None = field(
        default=None,
        metadata={"help": "What trains, the rest is frozen: names of modules or patterns, such as audio_tower or "
                  "audio_tower.layers.1[0-7].*; all of it where not given."},
    )  # fmt: skip
    lora: dict | None = field(
        default=None,
        metadata={"help": "Train a LoRA adapter of the language model: r (16), alpha (32), dropout (0.05), modules "
                  "(q_proj, k_proj, v_proj, o_proj)."},
    )  # fmt: skip
    merge: bool = field(default=True, metadata={"help": "Save the LoRA result merged too, beside the adapter."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "`sdpa` or `eager`."})

    def __post_init__(self):
        if self.model_name_or_path:
            self.model_name_or_path = follow_pointer(self.model_name_or_path)
        if self.lora is not None:
            self.lora = LoraSettings.from_dict(self.lora).to_dict()
            if self.trainable:
                raise ValueError("`trainable` has no effect with `lora`, beside which nothing trains; leave it out.")
            if not self.model_name_or_path:
                raise ValueError("`lora` adapts a trained recogniser; give it as `model_name_or_path`.")
        elif not self.merge:
            raise ValueError("`merge` has no effect without `lora`; leave it out.")
        if self.task not in ("asr", "ctc"):
            raise ValueError(f"`task` is {self.task!r}; choose `asr` or `ctc`.")
        new = ("audio_tower", "language_model", "preset", "config_overrides", "adaptor_config", "ctc_config")
        only_asr = ("language_model", "adaptor_config", "ctc_config", "ctc_weight", "lm_weight", "lora")
        if self.model_name_or_path:
            self._refuse((*new, "ctc_tokenizer"), "with `model_name_or_path`, which decides the model")
        elif self.task == "asr" and not self.language_model:
            raise ValueError(
                "`language_model` is missing: give one, such as Qwen/Qwen3-0.6B, or `model_name_or_path`."
            )
        if self.audio_tower:
            self._refuse(("preset", "config_overrides"), "with `audio_tower`, which decides the encoder")
        if self.ctc_weight == 0:
            self._refuse(("ctc_tokenizer", "ctc_config"), "with `ctc_weight` 0, where there is no CTC head")
            if self.lm_weight == 0:
                raise ValueError("`ctc_weight` and `lm_weight` are both 0: nothing would be learned; raise one.")
        if self.task == "ctc":
            self._refuse(only_asr, "with `task` ctc")

    def _refuse(self, names, where: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` has no effect {where}; leave it out.")


@dataclass
class FinetuneDataArguments:
    """Which labelled recordings, how their texts are written, how they are batched."""

    train_data: list[str] | None = field(
        default=None, metadata={"help": "Labelled recordings: manifests, folders, parquet, saved data sets, Hub ids."}
    )
    eval_data: dict | None = field(
        default=None, metadata={"help": "Validation sets: name -> source(s), or one source."}
    )
    text_level: str = field(default="raw", metadata={"help": f"Text of the language model: {', '.join(LEVELS)}."})
    ctc_text_level: str = field(default="basic", metadata={"help": f"Text of the CTC head: {', '.join(LEVELS)}."})
    eval_text_level: str = field(default="zh", metadata={"help": "Both texts before they are compared."})
    min_duration_s: float = field(default=0.1, metadata={"help": "Shorter recordings are left out, and counted."})
    max_duration_s: float = field(default=30.0, metadata={"help": "Longer recordings are left out, and counted."})
    resample: bool = field(default=True, metadata={"help": "Resample recordings of another rate, or refuse them."})
    on_bad_audio: str = field(default="fail", metadata={"help": "Recordings that cannot be used: `fail` or `skip`."})
    channel: str | None = field(
        default=None, metadata={"help": "Telephone channel on training recordings: a YAML or the name of a preset."}
    )
    wideband_share: float | None = field(
        default=None, metadata={"help": "Share of recordings that the channel leaves alone (0)."}
    )
    channel_domains: list[str] | None = field(
        default=None, metadata={"help": "Only recordings of these domains (name=source) go through the channel."}
    )
    spec_augment: dict | None = field(
        default=None,
        metadata={"help": "Hide parts of the features in training: freq_masks, freq_width, time_masks, time_width; "
                  "{} for the usual ones."},
    )  # fmt: skip
    no_speech_share: float = field(
        default=0.0, metadata={"help": "Share of the recordings that become noise with no text, anew in each epoch."}
    )
    join_to_s: float | None = field(
        default=None,
        metadata={"help": "Join shorter training recordings to about so many seconds, others in each epoch."},
    )
    hotword_share: float = field(
        default=0.0,
        metadata={"help": "Share of the recordings whose prompt names hotwords: words of their text and of others."},
    )
    answer_noise: float = field(
        default=0.0,
        metadata={
            "help": "Share of the answer's tokens that the language model misreads in training, so that it listens."
        },
    )
    mix: str = field(
        default="all",
        metadata={"help": "Several domains (name=source): all rows once, or `temperature`, `random`, `round-robin`."},
    )
    mix_weights: dict | None = field(default=None, metadata={"help": "For mix=random: a weight for each domain."})
    mix_temperature: float | None = field(default=None, metadata={"help": "For mix=temperature (1.0)."})
    eval_keywords: str | None = field(
        default=None, metadata={"help": "File of keywords, one per line: validation then gives the KWER too."}
    )
    eval_segmenter: str | None = field(
        default=None, metadata={"help": "`jieba`: validation gives the WER of Chinese text (extra `segmenter`)."}
    )
    batch_budget: float | None = field(
        default=None, metadata={"help": "Padded size of a batch, in budget_unit; else per_device_train_batch_size."}
    )
    budget_unit: str = field(default="seconds", metadata={"help": f"{', '.join(UNITS)}."})
    sort_window: int = field(default=64, metadata={"help": "Batches that are sorted by length together."})
    max_memory_gb: float | None = field(
        default=None, metadata={"help": "Refuse to start where the longest batch needs more memory."}
    )
    probe: bool = field(default=True, metadata={"help": "Run the longest batch first; print its memory and time."})

    def __post_init__(self):
        if self.spec_augment is not None:
            SpecAugment.from_config(self.spec_augment)
        if not 0 <= self.no_speech_share < 1:
            raise ValueError(f"`no_speech_share` is {self.no_speech_share}; it must be at least 0 and less than 1.")
        if self.join_to_s is not None and not 0 < 2.5 * self.join_to_s <= self.max_duration_s:
            raise ValueError(
                f"`join_to_s` is {self.join_to_s}; joined recordings may be 2.5 times as long: it must lie between "
                f"0 and {self.max_duration_s / 2.5:g} (`max_duration_s` / 2.5)."
            )
        if not 0 <= self.answer_noise < 1:
            raise ValueError(f"`answer_noise` is {self.answer_noise}; it must be at least 0 and less than 1.")
        if not 0 <= self.hotword_share <= 1:
            raise ValueError(f"`hotword_share` is {self.hotword_share}; it must lie between 0 and 1.")
        if self.batch_budget is None and self.budget_unit != "seconds":
            raise ValueError("`budget_unit` has no effect without `batch_budget`; give it too.")
        if self.budget_unit not in UNITS:
            raise ValueError(f"`budget_unit` is {self.budget_unit!r}; choose one of {', '.join(UNITS)}.")
        if self.wideband_share is not None and self.channel is None:
            raise ValueError("`wideband_share` has no effect without `channel`; give one, or leave it out.")
        if not 0 <= (self.wideband_share or 0) <= 1:
            raise ValueError(f"`wideband_share` is {self.wideband_share}; it must lie between 0 and 1.")
        if self.channel_domains and self.channel is None:
            raise ValueError("`channel_domains` has no effect without `channel`; give one, or leave it out.")
        if self.mix not in MIX_TECHNIQUES:
            raise ValueError(f"`mix` is {self.mix!r}; choose one of {', '.join(MIX_TECHNIQUES)}.")
        for name, technique in (("mix_weights", "random"), ("mix_temperature", "temperature")):
            if getattr(self, name) is not None and self.mix != technique:
                raise ValueError(f"`{name}` has no effect without `mix` {technique}; give both, or leave it out.")
        if self.mix == "random" and not self.mix_weights:
            raise ValueError("`mix` random needs `mix_weights`, a weight for each domain.")
        if self.eval_segmenter not in (None, "jieba"):
            raise ValueError(f"`eval_segmenter` is {self.eval_segmenter!r}; choose jieba.")
        if self.max_memory_gb is not None and not self.probe:
            raise ValueError("`max_memory_gb` has no effect without `probe`; leave one of them out.")
        for name in ("text_level", "ctc_text_level", "eval_text_level"):
            if getattr(self, name) not in LEVELS:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(LEVELS)}.")


@dataclass
class FinetuneTrainingArguments(NestTrainingArguments):
    """`transformers.TrainingArguments` with defaults for finetuning."""

    learning_rate: float | None = field(default=1e-4, metadata={"help": "Peak of the schedule."})
    schedule: str = field(default="trainer", metadata={"help": "Must stay `trainer`: see --lr_scheduler_type."})
    warmup_steps: float = field(default=0, metadata={"help": "Updates of linear warm-up, or a share below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "On weights, not on biases and norms."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clipping of the gradient norm; 0 is none."})
    eval_steps: float | None = field(default=500, metadata={"help": "Updates between validations."})
    save_steps: float = field(default=500, metadata={"help": "Updates between checkpoints."})
    predict_with_generate: bool = field(
        default=True, metadata={"help": "Validate the language model by the text that it writes."}
    )
    stage: str = field(default="finetune", metadata={"help": "Name of the stage, for stage.json and messages."})
    parent_stage: str | None = field(
        default=None, metadata={"help": "Refuse a `model_name_or_path` that another stage has made."}
    )
    keep_best: int = field(
        default=0,
        metadata={"help": "Keep the weights of the best validations; the result is the best, or the average of all "
                  "kept if that decodes better. 0: the last weights."},
    )  # fmt: skip
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many validations without a better one."}
    )
    max_loss_ratio: float | None = field(
        default=None,
        metadata={"help": "Stop when the loss of a step is this many times the median of the last 100; names the "
                  "recordings."},
    )  # fmt: skip

    def __post_init__(self):
        if self.schedule != "trainer" or self.min_lr != type(self).min_lr:
            raise ValueError("`schedule` and `min_lr` have no effect on finetuning; choose by --lr_scheduler_type.")
        if self.keep_best < 0:
            raise ValueError(f"`keep_best` is {self.keep_best}; give a number of validations, 0 for the last weights.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"`early_stopping_patience` is {self.early_stopping_patience}; it must be 1 or more.")
        if self.early_stopping_patience and not self.keep_best:
            raise ValueError("`early_stopping_patience` needs `keep_best` 1 or more: the best weights are the result.")
        if self.load_best_model_at_end:  # by the weights that are kept, not by whole checkpoints
            self.load_best_model_at_end, self.keep_best = False, self.keep_best or 1
        if self.max_loss_ratio is not None and self.max_loss_ratio <= 1:
            raise ValueError(f"`max_loss_ratio` is {self.max_loss_ratio}; it must be above 1.")
        if self.max_steps is None and self.num_train_epochs is None:
            self.num_train_epochs = 10.0
        super().__post_init__()


def check_together(
    model_args: FinetuneModelArguments,
    data_args: FinetuneDataArguments,
    args: FinetuneTrainingArguments,
    where: str = "",
) -> None:
    """Refuses what no group of options knows by itself to be idle; messages begin with `where`."""
    if args.keep_best and not data_args.eval_data:
        raise ValueError(f"{where}`keep_best` has no effect without `eval_data`; give it, or leave it out.")
    if args.use_muon and model_args.lora:
        raise ValueError(f"{where}`use_muon` has no effect with `lora`, whose matrices are no layer's; leave it out.")
