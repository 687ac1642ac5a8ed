"""Lengths in declared units: exact counts, and nothing guessed."""

import datasets
import numpy as np
import pytest

from nest_hf import NestFeatureExtractor
from nest_hf.configuration_nest_asr import num_audio_tokens, num_encoder_frames
from nest_hf.data.lengths import mel_frames, row_lengths

ROWS = datasets.Dataset.from_dict(
    {"duration": [1.0, 0.29, 10.0, 0.005], "text": ["a b", None, "a b c d e", ""], "id": list("abcd")}
)


def test_every_unit_counts_what_it_says():
    assert row_lengths(ROWS).tolist() == [1.0, 0.29, 10.0, 0.005]
    assert row_lengths(ROWS, "mel_frames").tolist() == [100, 29, 1000, 0]  # 100 valid frames to the second
    assert row_lengths(ROWS, "encoder_frames").tolist() == [13, 4, 125, 0]
    assert row_lengths(ROWS, "encoder_frames", subsampling_factor=4).tolist() == [25, 8, 250, 0]
    tokens = row_lengths(
        ROWS,
        "llm_tokens",
        num_audio_tokens=lambda frames: num_audio_tokens(num_encoder_frames(frames, 8), 2),
        prompt_tokens=20,
        tokenize=lambda texts: [text.split() for text in texts],
    )
    assert tokens.tolist() == [7 + 20 + 2, 2 + 20 + 0, 63 + 20 + 5, 0 + 20 + 0]
    counted = row_lengths(
        ROWS, "llm_tokens", num_audio_tokens=lambda frames: frames, prompt_tokens=[1, 2, 3, 4], target_tokens=[9] * 4
    )
    assert counted.tolist() == [110, 40, 1012, 13]


def test_mel_frames_are_those_of_the_feature_extractor():
    extractor = NestFeatureExtractor()
    samples = np.random.default_rng(0).integers(1, 10**6, 500)
    assert mel_frames(samples / 16000).tolist() == extractor.num_frames(samples).tolist()
    assert mel_frames(np.arange(300) / 100).tolist() == list(range(300))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "frames"}, "`unit` is 'frames'; choose one of seconds, mel_frames"),
        ({"unit": "seconds", "target_tokens": [1] * 4}, "has no effect on seconds"),
        ({"unit": "llm_tokens"}, "needs `num_audio_tokens`"),
        ({"unit": "llm_tokens", "num_audio_tokens": abs}, "either `target_tokens` or `tokenize`"),
        ({"unit": "llm_tokens", "num_audio_tokens": abs, "target_tokens": [1]}, "has 1 counts for 4 rows"),
    ],
)
def test_counts_that_are_missing_or_idle_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        row_lengths(ROWS, **arguments)
    with pytest.raises(ValueError, match="1 of 1 rows have no `duration`"):
        row_lengths(datasets.Dataset.from_dict({"duration": [None]}))


def test_frames_and_tokens_adds_each_target_to_its_frames():
    rows = datasets.Dataset.from_dict({"duration": [1.0, 2.005], "text": ["abc", "a"]})
    lengths = row_lengths(rows, "frames_and_tokens", tokenize=lambda texts: [list(text) for text in texts])
    assert lengths.tolist() == [103.0, 201.0]
    assert row_lengths(rows, "frames_and_tokens", target_tokens=[0, 5]).tolist() == [100.0, 205.0]
