"""Arguments of pretraining, as dataclasses, and what they make: the model's configuration, the noise."""

import dataclasses
import typing
from dataclasses import dataclass, field

from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from .configuration_nest import PRESETS, NestConfig
from .data.noise import MultiSpeakerNoise, SpeakerNoise
from .data.telephone import PRESETS as CHANNEL_PRESETS
from .data.telephone import TelephoneChannel
from .parsing import check_keys, of_type


@dataclass
class NestModelArguments:
    """Which model is trained."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Start from these weights: a folder, a Hub id or a .nemo file. The schedule starts anew."},
    )
    preset: str | None = field(
        default=None,
        metadata={"help": f"Size of a model trained from scratch: {', '.join(PRESETS)}; large where not given."},
    )
    config_overrides: dict | None = field(
        default=None, metadata={"help": "Fields of NestConfig that differ, a YAML mapping or JSON."}
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "`sdpa` or `eager`."})
    sync_batchnorm: bool = field(
        default=True,
        metadata={"help": "BatchNorm statistics over all processes. CUDA only; on CPU it has no effect and says so."},
    )


@dataclass
class PretrainingDataArguments:
    """Which recordings, how they are batched and what is mixed into them. The defaults are NeMo's."""

    train_data: list[str] | None = field(
        default=None,
        metadata={"help": "Training recordings: manifests, folders, parquet, saved data sets, Hub ids."},
    )
    eval_data: dict | None = field(
        default=None,
        metadata={"help": "Validation sets, a mapping from name to source(s), or one source."},
    )
    noise_data: list[str] | None = field(default=None, metadata={"help": "Noise recordings, named as train_data."})
    eval_noise_data: list[str] | None = field(
        default=None, metadata={"help": "Noise recordings for the validation; noise_data where not given."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read train_data as it is needed; then max_steps decides the length."}
    )
    sampling_rate: int = field(default=16000, metadata={"help": "Hz of the model's input."})
    resample: bool = field(default=True, metadata={"help": "Resample recordings of another rate, or refuse them."})
    min_duration_s: float | None = field(
        default=None,
        metadata={"help": "Shorter recordings are left out, and counted; 1.0 where not given, 0 with join_to_s."},
    )
    max_duration_s: float = field(default=60.0, metadata={"help": "Longer recordings are left out, and counted."})
    join_to_s: float | None = field(
        default=None,
        metadata={"help": "Join recordings shorter than this to examples of about this length (blocks of 400 ms leave "
                  "most 1-s recordings unmasked)."},
    )  # fmt: skip
    batch_duration_s: float | None = field(
        default=None,
        metadata={"help": "Padded seconds of audio per batch and process; else per_device_train_batch_size."},
    )
    sort_window: int = field(default=64, metadata={"help": "Batches that are sorted by duration together."})
    mix: str = field(
        default="all",
        metadata={"help": "Several train_data: all rows once, or NeMo's `temperature`, `random`, `round-robin`."},
    )
    mix_temperature: float = field(default=1.0, metadata={"help": "For mix=temperature."})
    mix_weights: list[float] | None = field(default=None, metadata={"help": "For mix=random, one per train_data."})
    on_bad_audio: str = field(default="fail", metadata={"help": "Recordings that cannot be used: `fail` or `skip`."})
    noise_augmentation: str = field(
        default="multi_speaker",
        metadata={"help": "`multi_speaker` or `single_speaker` (NeMo's classes), or `none`."},
    )
    noise: dict | None = field(
        default=None, metadata={"help": "Parameters of the augmentation that differ, a YAML mapping or JSON."}
    )
    short_noise: str = field(
        default="repeat", metadata={"help": "Noise clips shorter than the recording: `repeat`, or `zero` as in NeMo."}
    )
    channel: str | None = field(
        default=None,
        metadata={"help": "Make telephone calls of the training recordings, anew in every epoch: the YAML of a "
                  "channel, such as configs/telephone.yaml, or the name of a preset."},
    )  # fmt: skip
    wideband_share: float = field(
        default=0.0, metadata={"help": "Share of the recordings that the channel leaves as they are."}
    )
    eval_noise_augmentation: str = field(
        default="multi_speaker", metadata={"help": "As noise_augmentation, for the condition `noisy` of a validation."}
    )
    eval_conditions: list[str] | None = field(
        default=None,
        metadata={"help": "Validate every set `noisy` (default), `clean`, `telephone` (by `channel`), or several of "
                  "these; noise, calls and masks never change."},
    )  # fmt: skip


@dataclass
class NestTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with NeMo's NEST recipe as defaults."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "Factor of the Noam schedule (5.0 where not given), or another's peak."}
    )
    schedule: str = field(default="noam", metadata={"help": "`noam`, or `trainer` for --lr_scheduler_type."})
    min_lr: float = field(default=1e-6, metadata={"help": "Floor of the Noam schedule after the warm-up."})
    warmup_steps: float = field(default=25000, metadata={"help": "Updates of linear warm-up."})
    weight_decay: float = field(default=1e-3, metadata={"help": "On all parameters, biases and norms included."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta."})
    use_muon: bool = field(
        default=False, metadata={"help": "Muon for the matrices of layers, AdamW for the rest, at the same rate."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clipping of the gradient norm; 0 is none."})
    max_steps: int | None = field(
        default=None, metadata={"help": "Updates; num_train_epochs decides where not given, else 500,000."}
    )
    num_train_epochs: float | None = field(default=None, metadata={"help": "Epochs, where max_steps is not given."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Recordings per batch and process."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Recordings per validation batch."})
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float | None = field(default=2500, metadata={"help": "Updates between validations."})
    save_steps: float = field(default=2500, metadata={"help": "Updates between checkpoints."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints that are kept."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between lines of train.log."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay false: NaN stops the run."})
    report_to: str | list[str] = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "tensorboard, wandb, trackio, none."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: the collator needs all."})
    ddp_gradient_as_bucket_view: bool = field(
        default=False, metadata={"help": "DDP: gradients as views of its buckets, which saves their size in memory."}
    )
    gpu_ids: str | None = field(default=None, metadata={"help": "Use only these GPUs, such as 0,2."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of every process (accelerate launch sets 1)."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "Must stay `end`: the Hub gets the whole model in one commit, or none."}
    )
    hub_license: str | None = field(
        default=None, metadata={"help": "Licence that the model card states, such as apache-2.0."}
    )
    auto_resume: bool = field(
        default=True, metadata={"help": "Go on from the newest complete checkpoint in output_dir."}
    )

    def __post_init__(self):
        if self.schedule not in ("noam", "trainer"):
            raise ValueError(f"`schedule` is {self.schedule!r}; choose `noam` or `trainer`.")
        if self.learning_rate is None:
            if self.schedule == "trainer":
                raise ValueError(
                    "`schedule` is trainer, which has no default rate; give `learning_rate`, such as 1e-3."
                )
            self.learning_rate = 5.0
        if self.max_steps is None:
            self.max_steps = -1 if self.num_train_epochs is not None else 500_000
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0
        if self.hub_strategy != "end" or self.hub_always_push:
            raise ValueError("`hub_strategy` must stay `end`, without `hub_always_push`: a run is pushed once, whole.")
        for name in WITHOUT_EFFECT:
            default = TrainingArguments.__dataclass_fields__[name].default
            if getattr(self, name) not in (default, None):
                raise ValueError(f"`{name}` has no effect here, since batches are planned in advance; leave it out.")
        super().__post_init__()
        for name in self.report_to:
            if name not in get_available_reporting_integrations():
                raise ValueError(
                    f"`report_to` names {name}, which is not installed; pip install {name}, or leave it out."
                )
        if self.use_muon and not str(self.optim.value).startswith("adamw_torch"):
            raise ValueError(f"`use_muon` goes with AdamW, `optim` is {self.optim.value}; leave one of them out.")
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("`fp16` has no effect on CPU; use `bf16`, or leave it out.")


# options of Trainer's own loaders, which are not used
WITHOUT_EFFECT = (
    "auto_find_batch_size",
    "dataloader_drop_last",
    "length_column_name",
    "prediction_loss_only",
    "train_sampling_strategy",
)


def noise_augmentation(name: str, parameters: dict | None) -> SpeakerNoise | None:
    """The augmentation `name` with those parameters that differ from its defaults."""
    classes = {"multi_speaker": MultiSpeakerNoise, "single_speaker": SpeakerNoise, "none": None}
    if name not in classes:
        raise ValueError(f"`noise_augmentation` is {name!r}; choose one of {', '.join(classes)}.")
    if classes[name] is None:
        return None
    kinds = typing.get_type_hints(classes[name])
    check_keys(parameters or {}, [f.name for f in dataclasses.fields(classes[name])], "noise")
    return classes[name](**{key: of_type(v, kinds[key], f"noise: `{key}`") for key, v in (parameters or {}).items()})


def telephone_channel(
    name: str | None, wideband_share: float, *, talkers, noise, seed: int
) -> TelephoneChannel | None:
    """The channel of a YAML or preset, with babble from `talkers` and noise from `noise`, both rows of recordings."""
    if not 0 <= wideband_share <= 1:
        raise ValueError(f"`wideband_share` is {wideband_share}; give a share between 0 and 1.")
    if name is None:
        if wideband_share:
            raise ValueError("`wideband_share` has no effect without `channel`; give both.")
        return None
    channel = TelephoneChannel.from_preset(name) if name in CHANNEL_PRESETS else TelephoneChannel.from_yaml(name)
    given = {"talkers": talkers, "noise": noise}
    channel = channel.with_noise(**{key: given.get(key) for key in channel.missing() if key in given}, seed=seed)
    if channel.missing() and channel.missing_noise == "error":
        raise ValueError(f"`channel` {name} mixes in {', '.join(channel.missing())}, of which there is none here.")
    return channel


def model_config(arguments: NestModelArguments) -> NestConfig:
    """The configuration of a model from scratch."""
    overrides = arguments.config_overrides or {}
    check_keys(overrides, [f.name for f in dataclasses.fields(NestConfig)], "config_overrides")
    try:
        return NestConfig.from_preset(arguments.preset or "large", **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"config_overrides: {error}") from error
