"""`pipeline("automatic-speech-recognition")` for our recognisers: audio in any form, without the ffmpeg program."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutomaticSpeechRecognitionPipeline, AutoModelForMultimodalLM
from transformers.pipelines import PIPELINE_REGISTRY

from .data.audio import decode_audio
from .decoding_settings import DecodingSettings
from .transcription import Transcriber, Transcription

TASK = "automatic-speech-recognition"
CALL_ARGUMENTS = ("return_timestamps", "chunk_length_s", "batch_size", "language", "prompt", "itn", "hotwords")
NUM_AT_ONCE = 32  # recordings of an iterable that `Transcriber` sorts and batches together
URLS = ("http://", "https://")


class NestSpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    r"""
    Recordings -> texts, with [`NestForCTC`] or [`NestAsrForConditionalGeneration`]; any other model runs as in
    transformers. Importing `nest_hf` puts it behind `pipeline("automatic-speech-recognition")`.

    A recording is a path, the bytes of a file, a waveform `(samples,)` at the model's rate, a dict
    `{"raw" or "array", "sampling_rate"}` of any rate, an element of a `datasets` audio column, decoded or not, or a
    row whose audio column is `audio`. Files are read by soundfile and resampled by soxr; only a URL needs the ffmpeg
    program, as in transformers.

    [`NestForCTC`] takes the stock path with its arguments: `return_timestamps` (`"char"`, `"word"`), `batch_size`,
    `chunk_length_s`, `stride_length_s`. Features are normalised per recording, and with `chunk_length_s` per chunk:
    the texts of a recording with and without chunks may differ in a few characters; batches change nothing.

    NEST-ASR runs in [`Transcriber`], which divides long recordings by itself. Its calls take `return_timestamps`
    (`"char"`, `"word"`), `chunk_length_s` (the longest piece; no longer than what the model was trained on),
    `batch_size`, `language`, `prompt`, `itn`, `hotwords`.

    Args:
        model, tokenizer, feature_extractor, device: As in transformers' pipeline, which asks for the tokenizer and the
            feature extractor where `model` is a module, and else loads those of its folder.
        processor ([`NestAsrProcessor`], *optional*): For NEST-ASR, in the same way.
        settings ([`DecodingSettings`], *optional*): For NEST-ASR: of [`Transcriber`].

    Example:

    ```python
    >>> import numpy as np
    >>> from transformers import pipeline
    >>> from nest_hf import NestConfig, NestFeatureExtractor, NestForCTC
    >>> from nest_hf.ctc_tokenizer import build_ctc_tokenizer

    >>> tokenizer = build_ctc_tokenizer(["办理业务"])
    >>> model = NestForCTC(NestConfig.from_preset("tiny", vocab_size=len(tokenizer), pad_token_id=0))
    >>> recognise = pipeline(
    ...     "automatic-speech-recognition", model=model, tokenizer=tokenizer, feature_extractor=NestFeatureExtractor()
    ... )
    >>> audio = {"array": np.zeros(8000, dtype=np.float32), "sampling_rate": 8000}
    >>> sorted(recognise(audio, return_timestamps="char"))
    ['chunks', 'text']

    >>> # with a trained recogniser
    >>> recognise = pipeline("automatic-speech-recognition", model="runs/asr", device="cpu")  # doctest: +SKIP
    >>> recognise("call.wav", return_timestamps="word", hotwords=["办理业务"])  # doctest: +SKIP
    {'text': '我要办理业务', 'chunks': [{'text': '我', 'timestamp': (0.4, 0.56)}, ...]}

    ```
    """

    _load_processor = None  # where there is one; NEST-ASR alone has use for it

    def __init__(self, model, *args, processor=None, settings: DecodingSettings | None = None, **kwargs):
        self.is_ours = model.config.model_type in ("nest", "nest_asr")
        self.transcriber, self.call_defaults = None, {}
        if model.config.model_type != "nest_asr":
            if settings is not None:
                raise ValueError("`settings` are of NEST-ASR and have no effect on this model; leave them out.")
            super().__init__(model, *args, **kwargs)
            return
        if processor is None:
            raise ValueError("`processor` is missing; pass the NestAsrProcessor of the model, or `model` as a folder.")
        self.call_defaults = {name: kwargs.pop(name) for name in CALL_ARGUMENTS if name in kwargs}
        super().__init__(model, *args, **kwargs)
        for name in (*self._preprocess_params, *self._forward_params, *self._generate_kwargs):
            raise ValueError(f"`{name}` has no effect on NEST-ASR; decoding is set by `settings`, a DecodingSettings.")
        self.processor, self.feature_extractor = processor, processor.feature_extractor
        self.transcriber = Transcriber(self.model, processor, settings=settings)

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: A recording in one of the forms above, or a list or any other iterable of such.
            **kwargs: As above.

        Returns:
            `dict` with `text` and, with `return_timestamps`, `chunks`: a list of `{"text", "timestamp"}`, seconds; for
            a list a list of them, for any other iterable an iterator.
        """
        if self.transcriber is None:
            if self.is_ours and isinstance(inputs, tuple):
                inputs = list(inputs)
            elif self.is_ours and not is_recording(inputs) and not isinstance(inputs, list | Dataset):
                inputs = (recording for recording in inputs)  # the stock call would take it for one recording
            return super().__call__(inputs, **kwargs)
        kwargs = {**self.call_defaults, **kwargs}
        if is_recording(inputs):
            return next(self._transcribe([inputs], **kwargs))
        results = self._transcribe(inputs, **kwargs)
        return list(results) if isinstance(inputs, list | tuple) else results

    def preprocess(self, inputs, **kwargs):
        yield from super().preprocess(self._decoded(inputs) if self.is_ours else inputs, **kwargs)

    def _decoded(self, audio) -> dict | np.ndarray | str:
        return decoded(audio, self.feature_extractor.sampling_rate)

    def _transcribe(
        self,
        recordings: Iterable,
        *,
        return_timestamps: str | None = None,
        chunk_length_s: float | None = None,
        batch_size: int = NUM_AT_ONCE,
        **request,
    ) -> Iterator[dict]:
        """Results in the order of `recordings`, of which `batch_size` are read at once."""
        if return_timestamps not in (None, False, "char", "word"):
            raise ValueError(f"`return_timestamps` is {return_timestamps!r}; choose 'char' or 'word'.")
        transcriber = self.transcriber
        if chunk_length_s:
            overlap_s = min(transcriber.settings.overlap_s, chunk_length_s / 2)
            settings = dataclasses.replace(transcriber.settings, max_window_s=chunk_length_s, overlap_s=overlap_s)
            transcriber = Transcriber(self.model, self.processor, settings=settings)
        recordings = iter(recordings)
        while batch := list(itertools.islice(recordings, batch_size)):
            waves = [self._wave(recording) for recording in batch]
            for result in transcriber(waves, timestamps=bool(return_timestamps), **request):
                yield _as_stock(result, return_timestamps)

    def _wave(self, recording) -> np.ndarray:
        audio = self._decoded(recording)
        if isinstance(audio, dict):
            audio = audio["raw"]
        if isinstance(audio, str):
            raise ValueError(f"`inputs` names {audio}, a URL; download the file, and pass its path or bytes.")
        return audio


def is_recording(inputs) -> bool:
    """Whether `inputs` is one recording."""
    return isinstance(inputs, str | bytes | os.PathLike | dict | np.ndarray | torch.Tensor) or hasattr(
        inputs, "get_all_samples"
    )


def decoded(audio, sampling_rate: int) -> dict | np.ndarray | str:
    """
    A recording in the form that the stock pipeline takes without the ffmpeg program and torchaudio.

    Args:
        audio: As of [`NestSpeechRecognitionPipeline`]; torchcodec's decoder is what `datasets` gives for a column.
        sampling_rate (`int`): The model's, in Hz.

    Returns:
        The waveform `(samples,)`; a dict `{"raw", "sampling_rate", ...}` keeps what else there was, such as `stride`
        in samples of the new rate; a URL is returned as it is.
    """
    if isinstance(audio, str) and audio.startswith(URLS):
        return audio
    if hasattr(audio, "get_all_samples"):
        samples = audio.get_all_samples()
        audio = {"array": samples.data, "sampling_rate": samples.sample_rate}
    if isinstance(audio, torch.Tensor):
        audio = audio.cpu().numpy()
    if isinstance(audio, np.ndarray):
        return audio
    if not isinstance(audio, dict):
        return decode_audio(audio, sampling_rate=sampling_rate).samples
    if "audio" in audio:
        return decoded(audio["audio"], sampling_rate)
    rest = dict(audio)
    wave, array = rest.pop("raw", None), rest.pop("array", None)
    wave = array if wave is None else wave
    path, data = rest.pop("path", None), rest.pop("bytes", None)
    rate = rest.pop("sampling_rate", None)
    if wave is None:
        if path is None and data is None:
            raise ValueError(f"`inputs` has the keys {sorted(audio)}; pass 'raw' or 'array' with 'sampling_rate'.")
        return {
            "raw": decode_audio({"path": path, "bytes": data}, sampling_rate=sampling_rate).samples,
            "sampling_rate": sampling_rate,
            **rest,
        }
    wave = wave.cpu().numpy() if isinstance(wave, torch.Tensor) else np.asarray(wave)
    if "stride" in rest and rate:
        rest["stride"] = tuple(round(side * sampling_rate / rate) for side in rest["stride"])
    samples = decode_audio({"array": wave, "sampling_rate": rate}, sampling_rate=sampling_rate).samples
    return {"raw": samples, "sampling_rate": sampling_rate, **rest}


def _as_stock(result: Transcription, return_timestamps: str | None) -> dict:
    """A transcription in the form of the stock pipeline."""
    if not return_timestamps:
        return {"text": result.text}
    timed = result.words if return_timestamps == "word" else result.characters
    chunks = [{"text": item.text, "timestamp": (item.start_s, item.end_s)} for item in timed]
    return {"text": result.text, "chunks": chunks}


def register() -> None:
    """Puts [`NestSpeechRecognitionPipeline`] behind the task, for models of the stock classes and NEST-ASR."""
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    if task["impl"] is not NestSpeechRecognitionPipeline:
        task.update(impl=NestSpeechRecognitionPipeline, pt=(*task["pt"], AutoModelForMultimodalLM))


__all__ = ["NestSpeechRecognitionPipeline", "decoded"]
