"""Speech encoders of any make, frozen: the mean over time of every layer, for each recording."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedModel

from .asr_audio import min_samples
from .convert_nemo import convert, read_archive
from .data import PretrainingDataset, TokenBudgetBatchSampler
from .handover import follow_pointer

RANDOM = "random:"
ONLY_IN_TRAINING = "masked_spec_embed"  # wav2vec2-base-960h and others were published without
WITH_FRAME_MASK = ("nest", "parakeet_encoder")  # which return the mask of their frames


class FrozenEncoder:
    """
    An encoder in eval mode and its feature extractor.

    Args:
        model (`PreTrainedModel`): An encoder with `output_hidden_states`.
        extractor: Its feature extractor.
        device (`str`, *optional*, defaults to `"cpu"`): Where it computes.

    Attributes:
        fingerprint (`str`): SHA-256 of all weights and of the feature extractor's settings.
    """

    def __init__(self, model: PreTrainedModel, extractor, *, device: str = "cpu"):
        self.model, self.extractor = model.eval().requires_grad_(False).to(device), extractor
        self.sampling_rate = extractor.sampling_rate
        self.model_type = model.config.model_type
        takes_mask = getattr(extractor, "return_attention_mask", True) and hasattr(
            model, "_get_feature_vector_attention_mask"
        )
        # any other would hear the padding
        self.in_batches = takes_mask or self.model_type in (*WITH_FRAME_MASK, "whisper")
        self.fingerprint = _fingerprint(model, extractor)

    @classmethod
    def from_pretrained(cls, source: str, *, device: str = "cpu", seed: int = 0) -> "FrozenEncoder":
        """
        Args:
            source (`str`):
                Folder, Hub id or stage pointer of any speech encoder of transformers, alone or in a model with heads
                or a decoder, or a .nemo of NEST. `random:` in front gives its architecture new weights.
            device (`str`, *optional*, defaults to `"cpu"`): Where it computes.
            seed (`int`, *optional*, defaults to 0): Of new weights.

        Raises:
            ValueError: for a model that has no encoder of speech, or whose weights lack a tensor.
        """
        is_random, path = source.startswith(RANDOM), follow_pointer(source.removeprefix(RANDOM))
        if path.endswith(".nemo"):
            model, extractor = convert(*read_archive(path), source=path)
            return cls(_new(model.encoder.config, seed) if is_random else model.encoder, extractor, device=device)
        try:
            extractor = AutoFeatureExtractor.from_pretrained(path)
            if is_random:
                model, missing = _new(AutoConfig.from_pretrained(path), seed), set()
            else:
                model, info = AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
                missing = {key for key in info["missing_keys"] if ONLY_IN_TRAINING not in key}
        except OSError as error:
            raise ValueError(f"{path} is no model with a feature extractor: {str(error).splitlines()[0]}") from error
        name = next(
            (n for n in ("audio_tower", "encoder") if isinstance(getattr(model, n, None), PreTrainedModel)), ""
        )
        lost = sorted(key for key in missing if key.startswith(name))
        if lost:
            raise ValueError(f"{path} lacks {len(lost)} tensors of its encoder ({', '.join(lost[:3])}, ...); pass a "
                             f"whole checkpoint, or {RANDOM}{path} for new weights.")  # fmt: skip
        return cls(getattr(model, name) if name else model, extractor, device=device)

    @torch.inference_mode()
    def layer_means(self, waves: Sequence[np.ndarray]) -> torch.Tensor:
        """
        Args:
            waves (`Sequence[np.ndarray]`): B mono waveforms `(samples,)` at the encoder's rate.

        Returns:
            `torch.FloatTensor` of shape `(B, L, D)`: The mean over a recording's own frames of the first block's input
            and of each block's output; the same in any batch.
        """
        least = min_samples(self.sampling_rate)
        waves = [np.pad(wave, (0, max(0, least - len(wave)))) for wave in waves]
        groups = [waves] if self.in_batches else [[wave] for wave in waves]
        return torch.cat([self._of_group(group) for group in groups])

    def _of_group(self, waves) -> torch.Tensor:
        options = {"padding": "max_length" if self.model_type == "whisper" else True} if self.in_batches else {}
        if self.in_batches:
            options["return_attention_mask"] = True
        if self.model_type == "whisper" and max(map(len, waves)) > self.extractor.n_samples:
            raise ValueError(f"a recording has {max(map(len, waves)) / self.sampling_rate:.1f} s, and Whisper hears "
                             f"{self.extractor.chunk_length} s; leave it out by --max_duration_s.")  # fmt: skip
        inputs = self.extractor(waves, sampling_rate=self.sampling_rate, return_tensors="pt", **options)
        inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
        out = self.model(**inputs, output_hidden_states=True)
        mask = self._frames(out, inputs).float()  # (B, T')
        weights = mask / mask.sum(-1, keepdim=True).clamp_min(1)
        return torch.stack([torch.einsum("bt,btd->bd", weights, h.float()) for h in out.hidden_states], dim=1).cpu()

    def _frames(self, out, inputs) -> torch.Tensor:
        """`(B, T')`: 1 at the frames of the recording itself."""
        num_frames = out.hidden_states[-1].shape[1]
        if not self.in_batches:
            return torch.ones(1, num_frames, device=self.model.device)
        if self.model_type in WITH_FRAME_MASK:
            return out.attention_mask
        if self.model_type == "whisper":
            return inputs["attention_mask"][:, ::2]  # its second convolution halves the frames
        return self.model._get_feature_vector_attention_mask(num_frames, inputs["attention_mask"])


def recording_keys(rows) -> list[str]:
    """A hash of each recording: its bytes, or its file's path, size and time, and the part that is heard."""
    keys = []
    for row in rows:
        audio, part = row["audio"], f"{row['offset'] or 0.0} {row['duration']}"
        if audio["bytes"] is not None:
            content = hashlib.sha256(audio["bytes"]).hexdigest()
        else:
            status = os.stat(audio["path"])
            content = f"{os.path.abspath(audio['path'])} {status.st_size} {status.st_mtime_ns}"
        keys.append(hashlib.sha256(f"{content} {part}".encode()).hexdigest())
    return keys


def cached_layer_means(
    encoder: FrozenEncoder, rows, keys: Sequence[str], cache_dir: str | Path, *, batch_duration_s: float = 100.0
) -> tuple[torch.Tensor, bool]:
    """
    Args:
        encoder ([`FrozenEncoder`]): The encoder.
        rows (`datasets.Dataset`): Recordings, from [`load_speech_dataset`].
        keys (`Sequence[str]`): Of [`recording_keys`].
        cache_dir (`str` or `Path`): Files named by what they were computed from; another encoder or recording gives
            another name.
        batch_duration_s (`float`, *optional*, defaults to 100.0): Padded audio per batch.

    Returns:
        `(N, L, D)` of [`~FrozenEncoder.layer_means`], and whether they were there already.
    """
    name = hashlib.sha256("\n".join([encoder.fingerprint, *keys]).encode()).hexdigest()[:32]
    path = Path(cache_dir) / f"{name}.safetensors"
    if path.exists():
        return load_file(path)["layer_means"], True
    examples = PretrainingDataset(rows, sampling_rate=encoder.sampling_rate)
    durations = rows["duration"][:]
    sampler = TokenBudgetBatchSampler(durations, budget=max(batch_duration_s, *durations), shuffle=False)
    position = {key: index for index, key in enumerate(rows["id"][:])}
    means = [None] * len(rows)
    with tqdm(total=len(rows), unit=" recordings", leave=False, disable=None) as progress:
        for batch in DataLoader(examples, batch_sampler=sampler, collate_fn=list):
            found = encoder.layer_means([example.wave for example in batch])
            for example, layers in zip(batch, found, strict=True):
                means[position[example.id]] = layers
            progress.update(len(batch))
    stacked = torch.stack(means)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"layer_means": stacked}, partial)
    partial.replace(path)
    return stacked, False


def _new(config, seed: int) -> PreTrainedModel:
    """The architecture with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModel.from_config(config).float()


def _fingerprint(model: PreTrainedModel, extractor) -> str:
    digest = hashlib.sha256(extractor.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


__all__ = ["FrozenEncoder", "cached_layer_means", "recording_keys"]
