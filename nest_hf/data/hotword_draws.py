"""Hotwords for the prompts of training, so that a language model learns to use a list and not to believe it."""

import re
from collections.abc import Sequence

import numpy as np

SAID = 0.7  # of the lists that name a word of the recording's own text
NUM_OTHERS = 5  # at most, of words that other recordings say
SPAN = (2, 5)  # characters of a word where a text has no spaces
# runs of Han and kana; words of scripts with spaces
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]+|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def draw_word(text: str, rng: np.random.Generator) -> str | None:
    """A word of a text, or 2 to 5 characters of one that is written without spaces; None where it has none."""
    runs = [run for run in WORDS.findall(text) if len(run) >= SPAN[0]]
    if not runs:
        return None
    run = runs[rng.integers(len(runs))]
    if run[0] < "\u3040":  # of a script with spaces
        return run
    length = int(rng.integers(SPAN[0], min(SPAN[1], len(run)) + 1))
    first = int(rng.integers(len(run) - length + 1))
    return run[first : first + length]


def draw_hotwords(text: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """
    A list as a prompt names it, in any order: mostly with a word of the text, and with some that it does not have.

    Args:
        text (`str`): What the recording says.
        others (`Sequence[str]`): Texts of the data set, of which the other words are.
        rng (`np.random.Generator`): Of all draws.
    """
    words = [draw_word(text, rng)] if rng.random() < SAID else []
    for row in rng.integers(len(others), size=rng.integers(0, NUM_OTHERS + 1)):
        words.append(draw_word(others[row], rng))
    words = [word for index, word in enumerate(words) if word and (index == 0 or word not in text)]
    return tuple(dict.fromkeys(rng.permutation(words).tolist())) if words else ()


__all__ = ["draw_hotwords"]
