"""Swapped recordings and silence."""

import numpy as np
import pytest

from nest_hf.listening import heard_without_speech, swapped_cer


def rows(texts, references, durations):
    pairs = zip(texts, references, durations, strict=True)
    return [{"id": str(i), "text": t, "reference": r, "duration_s": d} for i, (t, r, d) in enumerate(pairs)]


def test_each_reference_is_held_against_the_next_in_length():
    references = ["甲乙丙丁", "戊己庚辛", "子丑寅卯", "辰巳午未"]
    perfect = rows(references, references, [1.0, 3.0, 1.5, 2.5])
    rate, apart = swapped_cer(perfect, level="raw")
    assert rate == 1.0
    assert apart == pytest.approx(0.75)  # of 0.5, 1.0, 0.5 and, around the end, 2.0


def test_one_that_does_not_listen_does_as_well_on_another_recording():
    references = ["甲乙丙丁", "甲乙丙戊", "甲乙己丁"]
    deaf = rows(["甲乙丙丁"] * 3, references, [1.0, 2.0, 3.0])
    assert swapped_cer(deaf, level="raw")[0] == pytest.approx(2 / 12)


def test_recordings_without_reference_do_not_count():
    some = rows(["甲", "乙", "丙"], ["甲", "", "丙"], [1.0, 2.0, 3.0])
    assert swapped_cer(some, level="raw")[0] == 1.0
    with pytest.raises(ValueError, match="needs two"):
        swapped_cer(some[:2], level="raw")


def test_silence_is_still_and_of_several_lengths():
    class Recorder:
        sampling_rate = 8000

        def __call__(self, waves, *, sampling_rate):
            assert sampling_rate == 8000
            self.waves = waves
            return [type("Heard", (), {"text": "x" if np.abs(wave).max() > 0 else ""}) for wave in waves]

    recorder = Recorder()
    heard = heard_without_speech(recorder)
    assert heard == {"silence": [""] * 5, "noise": ["x"] * 5}
    assert len({len(wave) for wave in recorder.waves}) == 5
    assert max(np.sqrt(np.mean(wave**2)) for wave in recorder.waves) < 0.0011
