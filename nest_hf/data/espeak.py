"""Speech without recordings: espeak-ng's rule-based voices, for demos and tests."""

import ctypes
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import soxr

SAMPLING_RATE = 16000
# espeak-ng's variants that sound different, stay below full scale at half volume, and need no Klatt synthesis.
VARIANTS = "f1 m1 f2 m2 f3 m3 f4 m4 f5 m5 Annie m6 linda m7 belinda m8 steph Michael grandma edward Alex Lee".split()
VOICES = {"zh": "cmn", "en": "en-us"}


class Speaker(NamedTuple):
    """
    A voice: one of `VARIANTS`, its rate, its pitch on espeak's scale of 0 to 99, and a factor on all frequencies, as
    that of a shorter (above 1) or longer vocal tract.
    """

    id: str
    variant: str
    words_per_minute: int
    pitch: int
    formant_scale: float = 1.0


class Synthesizer:
    """
    espeak-ng through ctypes. Its state is global and never quite reset: use one per process, in a fixed order.

    Args:
        seed (`int`): Of the voices that jitter.

    Raises:
        ImportError: where `espeakng_loader` is not installed.
        OSError: where its data cannot be read.
    """

    def __init__(self, seed: int):
        try:
            import espeakng_loader
        except ImportError:
            raise ImportError('speech synthesis needs espeak-ng; run: pip install "nest_hf[demo]"') from None
        self.espeak, data_path = ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path()
        self.rate = self.espeak.espeak_Initialize(2, 0, os.fsencode(data_path), 0x8000)  # synchronous, no exit()
        if self.rate <= 0:
            raise OSError(f"espeak-ng cannot read its data in {data_path}; reinstall `espeakng_loader`.")
        self.espeak.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # some voices jitter, by default seeded from the clock
        self.espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.chunks = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        def collect(samples, num_samples, events):
            if samples and num_samples:
                self.chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
            return 0

        self.callback = collect  # an attribute, for espeak only holds its address
        self.espeak.espeak_SetSynthCallback(self.callback)

    def __call__(self, text: str, *, lang: str, speaker: Speaker) -> np.ndarray:
        """Says `text` in a language of `VOICES`; returns float32 samples at 16 kHz, (samples,)."""
        self.chunks.clear()
        voice, data = f"{VOICES[lang]}+{speaker.variant}", text.encode() + b"\0"
        status = [self.espeak.espeak_SetVoiceByName(voice.encode())]
        # 1 is the rate, 3 the pitch, and 2 the volume: at its default of 100 some voices clip inside espeak.
        rate = round(speaker.words_per_minute / speaker.formant_scale)  # what is played faster has to be said slower
        for parameter, value in {1: rate, 2: 50, 3: speaker.pitch}.items():
            status.append(self.espeak.espeak_SetParameter(parameter, value, 0))
        status.append(self.espeak.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, 1, None, None))  # UTF-8
        if any(status) or not self.chunks:
            raise RuntimeError(f"espeak-ng cannot say {text!r} with the voice {voice!r} (status {status}).")
        samples = np.concatenate(self.chunks).astype(np.float32) / 32768
        assert 0.02 < np.abs(samples).max() < 0.9999, f"{voice} is silent or clips in {text!r}"
        return soxr.resample(samples, self.rate * speaker.formant_scale, SAMPLING_RATE)

    def phonemes(self, text: str, *, lang: str) -> str:
        """What is said for `text`, in espeak's phoneme names; `(en)` and the like where it leaves the language."""
        if self.espeak.espeak_SetVoiceByName(VOICES[lang].encode()):
            raise RuntimeError(f"espeak-ng has no voice {VOICES[lang]!r}; reinstall `espeakng_loader`.")
        data = ctypes.create_string_buffer(text.encode())
        rest, clauses = ctypes.c_void_p(ctypes.addressof(data)), []
        while rest.value:  # one clause a call
            clauses.append(self.espeak.espeak_TextToPhonemes(ctypes.byref(rest), 1, 0).decode())
        return " ".join(clauses)

    def unspeakable(self, characters: Iterable[str]) -> list[str]:
        """Those Chinese characters that are skipped, or said as anything but one syllable of Mandarin."""
        return [c for c in sorted(set(characters)) if not _is_syllable(self.phonemes(c, lang="zh"))]


def _is_syllable(phonemes: str) -> bool:
    """One tone (two digits, and three for the third), no change of language, no pause inside."""
    said = phonemes.replace("_|", "").strip()
    return "(" not in said and len(said.split()) == 1 and sum(c.isdigit() for c in said) in (2, 3)
