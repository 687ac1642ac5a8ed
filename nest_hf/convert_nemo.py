"""NeMo's `.nemo` archives to this format and back.

    python -m nest_hf.convert_nemo model.nemo folder          # .nemo -> folder
    python -m nest_hf.convert_nemo folder model.nemo          # folder -> .nemo

NEST checkpoints (`EncDecDenoiseMaskedTokenPredModel`, `EncDecMaskedTokenPredModel`) become [`NestForPreTraining`],
FastConformer-CTC checkpoints [`NestForCTC`]. Every key of the archive's configuration is used, or must have the value
implemented here; every tensor is used; what is unknown is an error.
"""

import argparse
import io
import logging
import math
import pickle
import re
import sys
import tarfile
from pathlib import Path, PurePosixPath

import torch
import yaml

from .configuration_nest import NestConfig
from .feature_extraction_nest import NestFeatureExtractor
from .modeling_nest import NestForCTC, NestForPreTraining
from .nemo_keys import (
    CONFIG_FIELDS,
    CONFIG_SHARED,
    CTC_TARGETS,
    FEATURE_FIELDS,
    FIXED,
    FIXED_UNWRITTEN,
    NEMO_DEFAULTS,
    NEST_TARGETS,
    RUN_KEYS,
    RUN_SECTIONS,
    nemo_name,
    our_name,
)

logger = logging.getLogger(__name__)


def from_nemo(nemo_path, folder, *, legacy_frontend: bool | None = None):
    """
    Converts a `.nemo` archive and saves it to `folder`, feature extractor included.

    Args:
        nemo_path (`str` or `Path`): The archive (a plain or compressed tar).
        folder (`str` or `Path`): Output; made where missing.
        legacy_frontend (`bool`, *optional*):
            Features and subsampling of NeMo <= 2.4. Taken from the archive's `nemo_version` by default.

    Returns:
        [`NestForPreTraining`] or [`NestForCTC`], in eval mode.

    Raises:
        `ValueError`: the archive is unsafe or incomplete, a configuration key is unknown or has a value that is not
        implemented, or a tensor is unknown, missing or of another shape.
    """
    nemo_config, state = read_archive(nemo_path)
    model, extractor = convert(nemo_config, state, legacy_frontend=legacy_frontend, source=str(nemo_path))
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model


def convert(nemo_config: dict, state: dict, *, legacy_frontend: bool | None = None, source: str = ".nemo"):
    """NeMo's configuration and state dict -> (model, feature extractor)."""
    target = str(nemo_config.get("target", "")).rsplit(".", 1)[-1]
    is_ctc = target in CTC_TARGETS
    if not is_ctc and target not in NEST_TARGETS:
        raise ValueError(
            f"{source} holds a {target or 'model without `target`'}; NEST pretraining "
            f"({', '.join(NEST_TARGETS)}) and FastConformer-CTC ({', '.join(CTC_TARGETS)}) can be converted."
        )
    version = nemo_config.get("nemo_version")
    if legacy_frontend is None:
        legacy_frontend = is_legacy(version)
    config_fields, feature_fields = _read_config(nemo_config, is_ctc, source)
    extractor = NestFeatureExtractor(**feature_fields, legacy_frontend=legacy_frontend)
    state = dict(state)
    _check_front_end_buffers(state, extractor, source)
    state = {our_name(name): tensor for name, tensor in state.items()}

    if is_ctc:
        state = {name.replace("decoder.linear.", "ctc_head."): tensor for name, tensor in state.items()}
        if "ctc_head.bias" in state:  # NeMo's blank is the last class
            config_fields.update(vocab_size=len(state["ctc_head.bias"]), pad_token_id=len(state["ctc_head.bias"]) - 1)
    config = NestConfig(
        **config_fields,
        masked_subsampling=not legacy_frontend,
        mask_version="2.x" if str(version).startswith("2") else "3.0",
    )
    model = NestForCTC(config) if is_ctc else NestForPreTraining(config)
    for name in state.keys() & {"decoder.linear.weight", "decoder.linear.bias"}:
        state[name] = _book_major(state[name], config)

    own = model.state_dict()
    missing = [nemo_name(name) for name in own if name not in state]
    unknown = [nemo_name(name) for name in state if name not in own]
    wrong = [nemo_name(name) for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unknown or wrong:
        raise ValueError(
            f"{source} does not fit its configuration: missing tensors {missing[:5]}, unknown {unknown[:5]}, of "
            f"another shape {wrong[:5]}."
        )
    model.load_state_dict(state)
    return model.eval(), extractor


def to_nemo(folder, nemo_path, *, nemo_version: str | None = None):
    """
    Writes a [`NestForPreTraining`] folder as a `.nemo` archive that NeMo restores.

    Args:
        folder (`str` or `Path`): Folder or Hub id of a pretraining checkpoint.
        nemo_path (`str` or `Path`): Output; an existing file is an error.
        nemo_version (`str`, *optional*):
            Version recorded in the archive; by default the newest whose features and masks the model has (3.0.0).
    """
    nemo_path = Path(nemo_path)
    if nemo_path.exists():
        raise ValueError(f"{nemo_path} exists already; remove it first or choose another name.")
    model = NestForPreTraining.from_pretrained(folder, dtype=torch.float32)
    extractor = NestFeatureExtractor.from_pretrained(folder)
    nemo_config, state = to_nemo_parts(model, extractor, nemo_version=nemo_version)
    weights = io.BytesIO()
    torch.save(state, weights)
    members = {
        "./model_config.yaml": yaml.safe_dump(nemo_config, sort_keys=False).encode(),
        "./model_weights.ckpt": weights.getvalue(),
    }
    partial = nemo_path.with_name(nemo_path.name + ".incomplete")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(partial, "w:") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    partial.rename(nemo_path)


def to_nemo_parts(model: NestForPreTraining, extractor: NestFeatureExtractor, *, nemo_version: str | None = None):
    """(model, feature extractor) -> NeMo's configuration and state dict."""
    nemo_config = _write_config(model.config, extractor)
    nemo_config["target"] = f"nemo.collections.asr.models.ssl_models.{NEST_TARGETS[0]}"
    nemo_config["nemo_version"] = nemo_version or _newest_version(model.config)
    state = {
        "preprocessor.featurizer.window": extractor.window.clone(),
        "preprocessor.featurizer.fb": extractor.mel_filters.t()[None].contiguous(),
    }
    for name, tensor in model.state_dict().items():
        if name.startswith("decoder."):
            tensor = _class_major(tensor, model.config)
        state[nemo_name(name)] = tensor.contiguous().clone()
    return nemo_config, state


def read_archive(nemo_path) -> tuple[dict, dict]:
    """The configuration and the state dict of a `.nemo`; nothing is written to disk, no code in it is run."""
    nemo_path = Path(nemo_path)
    if not nemo_path.is_file():
        raise ValueError(f"{nemo_path} does not exist or is not a file; pass a .nemo archive.")
    wanted = {}
    try:
        with tarfile.open(nemo_path, "r:*") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"{nemo_path} holds the unsafe member {member.name!r}; refusing to open it.")
                if path.name in ("model_config.yaml", "model_weights.ckpt") and len(path.parts) == 1:
                    wanted[path.name] = archive.extractfile(member).read()
    except tarfile.TarError as error:
        raise ValueError(f"{nemo_path} is not a tar archive ({error}); is the download complete?") from error
    for name in ("model_config.yaml", "model_weights.ckpt"):
        if name not in wanted:
            raise ValueError(f"{nemo_path} lacks {name}; it is not a .nemo archive of a model.")
    config = yaml.safe_load(wanted["model_config.yaml"])
    try:
        state = torch.load(io.BytesIO(wanted["model_weights.ckpt"]), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{nemo_path}: model_weights.ckpt holds no plain tensors ({reason}).") from error
    return config, state


def is_legacy(version: str | None) -> bool:
    """Whether a NeMo version (<= 2.4) reflects edges and leaves padding unmasked in the subsampling."""
    numbers = re.findall(r"\d+", str(version or ""))[:2]
    if not numbers:
        raise ValueError(
            "the archive does not say its `nemo_version`; pass `legacy_frontend=True` (--legacy_frontend true) for a "
            "model trained with NeMo <= 2.4, else False."
        )
    return tuple(int(n) for n in numbers) < (2, 5)


def _newest_version(config: NestConfig) -> str:
    if not config.masked_subsampling:
        return "2.4.1"
    return "3.0.0" if config.mask_version == "3.0" else "2.7.3"


def _derived(config: NestConfig, features: NestFeatureExtractor) -> dict:
    """NeMo's keys that repeat or follow from the fields of NestConfig and NestFeatureExtractor."""
    return {
        "sample_rate": features.sampling_rate,
        "preprocessor.window_size": features.win_length / features.sampling_rate,
        "preprocessor.window_stride": features.hop_length / features.sampling_rate,
        "masking.feat_in": config.num_mel_bins,
        "quantizer.feat_in": config.num_mel_bins,
        "quantizer.code_dim": config.codebook_dim,
        "quantizer.num_books": config.num_codebooks,
        "quantizer.num_classes": config.codebook_size,
        "quantizer.squeeze_single": config.squeeze_single,
        "quantizer.combine_time_steps": config.subsampling_factor,
        "encoder.ff_expansion_factor": config.intermediate_size // config.hidden_size,
        "decoder.feat_in": config.hidden_size,
        "decoder.num_classes": config.codebook_size,
        "decoder.num_decoders": config.num_codebooks,
        "decoder.squeeze_single": config.squeeze_single,
        "loss.combine_time_steps": config.subsampling_factor,
        "loss.num_decoders": config.num_codebooks,
        "loss.squeeze_single": config.squeeze_single,
    }


def _read_config(nemo_config: dict, is_ctc: bool, source: str) -> tuple[dict, dict]:
    """Nested NeMo configuration -> fields of NestConfig and NestFeatureExtractor."""
    # 1. one level of `section.key`, without what describes the run, with NeMo's defaults where it is silent
    flat, dropped = {}, []
    for section, value in nemo_config.items():
        if section in RUN_SECTIONS or (is_ctc and section in ("decoder", "loss")):
            dropped.append(section)
        elif isinstance(value, dict):
            flat.update({f"{section}.{key}": inner for key, inner in value.items()})
            for key, default in NEMO_DEFAULTS.items():
                if key.startswith(f"{section}."):
                    flat.setdefault(key, default)
        else:
            flat[section] = value
    dropped += [key for key in flat if key in RUN_KEYS]
    flat = {key: value for key, value in flat.items() if key not in RUN_KEYS}
    for key in ("encoder.d_model", "encoder.n_layers", "encoder.feat_in", "preprocessor.sample_rate"):
        if flat.get(key) is None:
            raise ValueError(f"{source}: its configuration lacks `{key}`.")

    # 2. values that pass to a field
    config = {field: flat[key] for key, field in CONFIG_FIELDS.items() if key in flat}
    for key, fields in CONFIG_SHARED.items():
        if key in flat:
            config.update(dict.fromkeys(fields, flat[key]))
    features = {field: flat[key] for key, field in FEATURE_FIELDS.items() if key in flat}
    features["win_length"] = int(flat["preprocessor.window_size"] * flat["preprocessor.sample_rate"])
    features["hop_length"] = int(flat["preprocessor.window_stride"] * flat["preprocessor.sample_rate"])
    if features["n_fft"] is None:  # the power of two that holds the window
        features["n_fft"] = 2 ** math.ceil(math.log2(features["win_length"]))
    features["pad_to_multiple_of"] = features.get("pad_to_multiple_of") or 1
    config["intermediate_size"] = int(config["hidden_size"] * flat["encoder.ff_expansion_factor"])
    if config["subsampling_conv_channels"] == -1:
        config["subsampling_conv_channels"] = config["hidden_size"]

    # 3. values that must be the ones implemented, or agree with the others
    expected = {
        key: (value,) for key, value in _derived(NestConfig(**config), NestFeatureExtractor(**features)).items()
    }
    expected.update({"encoder.feat_in": (features.get("feature_size"),), **FIXED, **FIXED_UNWRITTEN})
    used = CONFIG_FIELDS.keys() | CONFIG_SHARED.keys() | FEATURE_FIELDS.keys() | expected.keys()
    for key, value in flat.items():
        if key not in used:
            raise ValueError(f"{source}: unknown configuration key `{key}` (value {value!r}).")
        if key in expected and value not in expected[key]:
            raise ValueError(f"{source}: `{key}` is {value!r}, but only {expected[key][0]!r} can be converted.")
    if not is_ctc and features["pad_to_multiple_of"] % config["subsampling_factor"]:
        raise ValueError(
            f"{source}: `preprocessor.pad_to` is {features['pad_to_multiple_of']}, not a multiple of "
            f"`encoder.subsampling_factor` {config['subsampling_factor']}, as the quantizer needs."
        )
    if dropped:
        logger.info("%s: not kept, since the model does not depend on it: %s", source, ", ".join(dropped))
    return config, features


def _write_config(config: NestConfig, extractor: NestFeatureExtractor) -> dict:
    """The inverse of `_read_config`; what NeMo cannot express is an error."""
    for key, fields in CONFIG_SHARED.items():
        if len({getattr(config, field) for field in fields}) > 1:
            raise ValueError(f"NeMo has one `{key}` for {' and '.join(fields)}; give both the same value.")
    if config.quantizer_input_norm:
        raise ValueError("`quantizer_input_norm` has no counterpart in NeMo 3.0; such a model cannot be exported.")
    if config.mask_position != "pre_conv":
        raise ValueError("`mask_position` 'post_conv' cannot be exported: NeMo quantizes convolved features there.")
    if config.intermediate_size % config.hidden_size:
        raise ValueError(f"`intermediate_size` {config.intermediate_size} is not a multiple of `hidden_size`.")
    flat = {key: choices[0] for key, choices in FIXED.items()}
    flat.update({key: getattr(config, field) for key, field in CONFIG_FIELDS.items()})
    flat.update({key: getattr(config, fields[0]) for key, fields in CONFIG_SHARED.items()})
    flat.update({key: getattr(extractor, field) for key, field in FEATURE_FIELDS.items()})
    flat.update(_derived(config, extractor))
    nested = {}
    for key, value in flat.items():
        *section, leaf = key.split(".")
        (nested.setdefault(section[0], {}) if section else nested)[leaf] = value
    # required by NeMo's constructor, without effect there
    nested["spec_augment"] = {
        "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
        "freq_masks": 0,
        "time_masks": 0,
        "freq_width": 27,
        "time_width": 0.05,
    }
    return nested


def _check_front_end_buffers(state: dict, extractor: NestFeatureExtractor, source: str) -> None:
    """The mel filters and the window in the archive must be the ones that we compute."""
    ours = {"window": extractor.window, "fb": extractor.mel_filters.t()[None]}
    for name, tensor in ours.items():
        stored = state.pop(f"preprocessor.featurizer.{name}", None)
        if stored is not None and (stored.shape != tensor.shape or not torch.allclose(stored, tensor, atol=1e-7)):
            raise ValueError(f"{source}: `preprocessor.featurizer.{name}` is not the one of the configuration.")


def _book_major(tensor: torch.Tensor, config: NestConfig) -> torch.Tensor:
    """NeMo's decoder rows, class * H + book, to book * C + class; (C * H, D, 1) -> (H * C, D)."""
    rows = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
    return rows.unflatten(0, (config.codebook_size, config.num_codebooks)).transpose(0, 1).flatten(0, 1)


def _class_major(tensor: torch.Tensor, config: NestConfig) -> torch.Tensor:
    """The inverse of `_book_major`."""
    rows = tensor.unflatten(0, (config.num_codebooks, config.codebook_size)).transpose(0, 1).flatten(0, 1)
    return rows[..., None] if tensor.ndim == 2 else rows


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help=".nemo archive, or a folder of this format")
    parser.add_argument("destination", help="folder, or .nemo archive")
    parser.add_argument(
        "--legacy_frontend",
        choices=("true", "false"),
        help="features of NeMo <= 2.4; from the archive's version by default",
    )
    args = parser.parse_args()
    try:
        if args.destination.endswith(".nemo"):
            to_nemo(args.source, args.destination)
        else:
            legacy = None if args.legacy_frontend is None else args.legacy_frontend == "true"
            model = from_nemo(args.source, args.destination, legacy_frontend=legacy)
            print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"written: {args.destination}")


if __name__ == "__main__":
    main()
