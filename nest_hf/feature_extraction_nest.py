"""Waveform -> normalised log-mel features with NeMo's numbers (`AudioToMelSpectrogramPreprocessor`, NeMo >= 2.5)."""

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from .remote_code import AUTO_MAPS

LOG_GUARD = 2**-24  # added to the mel power before the logarithm
STD_GUARD = 1e-5


class NestFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Log-mel features, normalised per recording and mel bin to zero mean and unit variance.

    Args:
        feature_size (`int`, *optional*, defaults to 80): Mel bins M.
        sampling_rate (`int`, *optional*, defaults to 16000): Hz.
        hop_length (`int`, *optional*, defaults to 160): Samples between frames (10 ms).
        win_length (`int`, *optional*, defaults to 400): Samples of the Hann window (25 ms).
        n_fft (`int`, *optional*, defaults to 512): Points of the Fourier transform.
        preemphasis (`float`, *optional*, defaults to 0.97): y[t] = x[t] - preemphasis * x[t - 1]; 0 switches it off.
        padding_value (`float`, *optional*, defaults to 0.0): Value of padded frames.
        pad_to_multiple_of (`int`, *optional*, defaults to 16): The number of frames is padded to a multiple of it.
        dither (`float`, *optional*, defaults to 1e-5):
            Amplitude of the white noise that pretraining adds to waveforms. Feature extraction itself adds none.
        legacy_frontend (`bool`, *optional*, defaults to `False`):
            The features of NeMo <= 2.4: reflected edges, one frame more, pre-emphasis that runs into the padding.

    Example:

    ```python
    >>> import numpy as np
    >>> from nest_hf import NestFeatureExtractor

    >>> wave = np.sin(np.arange(16000) / 20, dtype=np.float32)
    >>> features = NestFeatureExtractor()([wave, wave[:8000]], sampling_rate=16000, return_tensors="pt")
    >>> features.input_features.shape, features.attention_mask.sum(-1).tolist()
    (torch.Size([2, 112, 80]), [100, 50])

    ```
    """

    model_input_names = ["input_features", "attention_mask"]
    _auto_class = "AutoFeatureExtractor"  # a saved folder carries the code

    def __init__(
        self,
        feature_size=80,
        sampling_rate=16000,
        hop_length=160,
        win_length=400,
        n_fft=512,
        preemphasis=0.97,
        padding_value=0.0,
        pad_to_multiple_of=16,
        dither=1e-5,
        legacy_frontend=False,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = hop_length
        self.win_length = win_length
        self.n_fft = n_fft
        self.preemphasis = preemphasis
        self.pad_to_multiple_of = pad_to_multiple_of
        self.dither = dither
        self.legacy_frontend = legacy_frontend
        self.mel_filters = torch.from_numpy(
            mel_filter_bank(
                num_frequency_bins=n_fft // 2 + 1,
                num_mel_filters=feature_size,
                min_frequency=0.0,
                max_frequency=sampling_rate / 2,
                sampling_rate=sampling_rate,
                norm="slaney",
                mel_scale="slaney",
                dtype=np.float32,
            )
        )  # (n_fft / 2 + 1, M)
        self.window = torch.hann_window(win_length, periodic=False)

    @classmethod
    def at_rate(cls, sampling_rate: int, **kwargs) -> "NestFeatureExtractor":
        """The extractor for another rate: hop 10 ms, window 25 ms, the next power of 2 as Fourier transform."""
        win_length = sampling_rate // 40
        n_fft = 2 ** (win_length - 1).bit_length()
        return cls(
            sampling_rate=sampling_rate, hop_length=sampling_rate // 100, win_length=win_length, n_fft=n_fft, **kwargs
        )

    def to_dict(self):
        """The constants that follow from the other fields are not saved."""
        fields = {key: value for key, value in super().to_dict().items() if key not in ("mel_filters", "window")}
        return {**fields, "auto_map": {self._auto_class: AUTO_MAPS["nest"][self._auto_class]}}

    def num_frames(self, num_samples):
        """Valid frames of `num_samples` samples (an integer or a tensor)."""
        return num_samples // self.hop_length + (1 if self.legacy_frontend else 0)

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        resample: bool = False,
        device: str | torch.device = "cpu",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: A mono waveform, `(samples,)` array, list or tensor, or a list of such.
            sampling_rate (`int`, *optional*): Rate of `raw_speech` in Hz; checked against the extractor's.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            resample (`bool`, *optional*, defaults to `False`): Resample other rates (soxr) instead of refusing them.
            device (*optional*, defaults to `"cpu"`): Where the features are computed.

        Returns:
            `BatchFeature` with `input_features` (B, T, M) float32 and `attention_mask` (B, T) bool.
        """
        waves = self._as_waves(raw_speech)
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            if not resample:
                raise ValueError(
                    f"`sampling_rate` is {sampling_rate} Hz but the model was trained on {self.sampling_rate} Hz; "
                    "pass `resample=True`, or resample the audio."
                )
            try:  # in a `try`: as remote code this file loads without it, and transformers asks for nothing beforehand
                import soxr
            except ImportError as error:
                raise ImportError(
                    f"resampling from {sampling_rate} to {self.sampling_rate} Hz needs soxr: `pip install soxr`."
                ) from error
            waves = [torch.from_numpy(soxr.resample(w.numpy(), sampling_rate, self.sampling_rate)) for w in waves]
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        features, mask = self.extract(padded.to(device), lengths.to(device))
        return BatchFeature({"input_features": features, "attention_mask": mask}, tensor_type=return_tensors)

    @staticmethod
    def _as_waves(raw_speech) -> list[torch.Tensor]:
        single = not isinstance(raw_speech, (list, tuple)) or (
            len(raw_speech) > 0 and isinstance(raw_speech[0], (float, int))
        )
        if not single and len(raw_speech) == 0:
            raise ValueError("`raw_speech` is empty; pass at least one waveform.")
        if single and getattr(raw_speech, "ndim", 1) == 2:
            raise ValueError(
                f"`raw_speech` is an array of shape {tuple(raw_speech.shape)}; pass a mono waveform (samples,), or a "
                "list of such. Average the channels of stereo audio first."
            )
        waves = []
        for index, wave in enumerate([raw_speech] if single else raw_speech):
            wave = torch.as_tensor(wave, dtype=torch.float32).cpu()
            if wave.ndim != 1:
                raise ValueError(f"waveform {index} has shape {tuple(wave.shape)}; average the channels first.")
            waves.append(wave)
        return waves

    @torch.no_grad()
    def extract(self, waves: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Features of a padded batch.

        Args:
            waves (`torch.FloatTensor` of shape `(B, N)`): Zero-padded waveforms in [-1, 1].
            lengths (`torch.LongTensor` of shape `(B,)`): Valid samples.

        Returns:
            `input_features` (B, T, M) float32 and `attention_mask` (B, T) bool, on the device of `waves`.
        """
        with torch.autocast(waves.device.type, enabled=False):
            power = self._power_spectrum(self._preemphasize(waves.float(), lengths))
            mel = power @ self.mel_filters.to(power.device)
        mel = mel.add_(LOG_GUARD).log_()  # (B, frames, M)
        num_frames = self.num_frames(lengths)
        frames = mel.shape[1] + -mel.shape[1] % (self.pad_to_multiple_of or 1)
        mask = torch.arange(frames, device=mel.device) < num_frames[:, None]
        return F.pad(self._normalize(mel, mask[:, : mel.shape[1]], num_frames), (0, 0, 0, frames - mel.shape[1])), mask

    def _preemphasize(self, waves, lengths):
        if not self.preemphasis:
            return waves
        emphasized = torch.empty_like(waves)
        emphasized[:, :1] = waves[:, :1]
        # two roundings, as NeMo has; a fused multiply-add moves quiet bins by 1e-4
        torch.sub(waves[:, 1:], waves[:, :-1] * self.preemphasis, out=emphasized[:, 1:])
        if not self.legacy_frontend:
            emphasized.masked_fill_(torch.arange(waves.shape[1], device=waves.device) >= lengths[:, None], 0.0)
        return emphasized

    def _power_spectrum(self, waves):
        """(B, N) -> (B, 1 + N // hop, n_fft / 2 + 1)."""
        if self.legacy_frontend and waves.shape[1] <= self.n_fft // 2:
            raise ValueError(
                f"`legacy_frontend` reflects {self.n_fft // 2} samples at the edges; the batch has {waves.shape[1]}."
            )
        spectrum = torch.stft(
            waves,
            self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self.window.to(waves.device),
            center=True,
            pad_mode="reflect" if self.legacy_frontend else "constant",
            return_complex=True,
        )
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        return real.square().addcmul_(imaginary, imaginary).transpose(1, 2)

    def _normalize(self, mel, mask, num_frames):
        """Zero mean, unit variance (unbiased, 1e-5 added to the deviation) over valid frames; padding elsewhere."""
        valid = mask[..., None]
        count = num_frames[:, None, None]
        mean = mel.masked_fill(~valid, 0.0).sum(1, keepdim=True) / count
        centred = (mel - mean).masked_fill_(~valid, 0.0)
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1)).sqrt()
        deviation = deviation.nan_to_num(0.0, 0.0) + STD_GUARD
        return (centred / deviation).masked_fill_(~valid, self.padding_value)


__all__ = ["NestFeatureExtractor"]
