"""A corpus of synthetic calls: who says what in which set, and the recordings."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from .audio_encoding import encode_audio, write_whole
from .call_grammar import SEEN, UNSEEN, Sentence, draw_fragments, draw_sentence, draw_word, draw_word_row
from .espeak import SAMPLING_RATE, VARIANTS, Speaker, Synthesizer
from .seeding import generator_of, seed_of
from .telephone import TelephoneChannel

SETS = ("train", "validation", "test", "calls_train", "calls_validation", "calls_test")
CALL_RATE = 8000
NUM_SPEAKERS = {"train": 14, "validation": 3, "test": 5}
SECONDS_PER_CHARACTER = 43.0  # over words per minute: what espeak's Mandarin takes, measured over the grammar
PAUSE_S = (0.08, 0.3)  # before and after the speech
TALKERS_S = 300.0  # of other speech that babble is made of
SHARD = (
    100  # utterances of one process; its espeak-ng starts anew, so that recordings depend on no number of processes
)


@dataclass(frozen=True)
class Utterance:
    """A sentence with its speaker, before it is a recording."""

    id: str
    sentence: Sentence
    speaker: Speaker

    @property
    def expected_s(self) -> float:
        """Its length in seconds, near enough to plan a number of hours."""
        spoken_s = len(self.sentence.text) * SECONDS_PER_CHARACTER / self.speaker.words_per_minute
        return spoken_s + sum(PAUSE_S)


def split_of(name: str) -> str:
    """`train`, `validation` or `test` of one of `SETS`."""
    return name.removeprefix("calls_")


WOMEN = "f1 f2 f3 f4 f5 Annie linda belinda steph grandma".split()


def draw_speakers(seed: int) -> dict[str, list[Speaker]]:
    """A speaker for each of espeak-ng's variants, dealt out to the splits: no voice is in two."""
    rng = np.random.default_rng([seed, 0])
    men = [variant for variant in VARIANTS if variant not in WOMEN]
    shares = {v: (i + 0.5) / len(kind) for kind in (WOMEN, men) for i, v in enumerate(rng.permutation(kind).tolist())}
    variants = sorted(shares, key=shares.get)  # women and men in turn, so that every split has both
    rates_and_pitches = rng.integers([165, 30], [211, 71], size=(len(variants), 2)).tolist()
    speakers = [Speaker(v, v, *both) for v, both in zip(variants, rates_and_pitches, strict=True)]
    splits, first = {}, 0
    for split, number in NUM_SPEAKERS.items():
        splits[split] = speakers[first : first + number]
        first += number
    return splits


def draw_training_texts(rng: np.random.Generator) -> Iterator[Sentence]:
    """
    Seen templates and keywords without end: every fourth sentence takes the next keyword, so that none is rare, and
    every fourth any word, so that a keyword's place is no proof of a keyword.
    """
    keywords = itertools.cycle(SEEN)
    while True:
        yield draw_sentence(rng, keyword=next(keywords))
        yield draw_sentence(rng)
        yield draw_sentence(rng, keyword=draw_word(rng))
        yield draw_sentence(rng)


def draw_test_texts(rng: np.random.Generator, number: int, known: set[str]) -> list[Sentence]:
    """
    30 % with unseen templates, 20 % with an unseen keyword (half of them in a seen template), none of them in `known`.

    Args:
        rng (`np.random.Generator`): Of all draws.
        number (`int`): Of sentences; each unseen keyword occurs from 50 on.
        known (`set[str]`): Texts of training and of other sets; those drawn are added.
    """
    sentences = []
    for index in range(number):
        keyword = None if index % 5 else UNSEEN[index // 5 % len(UNSEEN)]
        sentences.append(_draw_new(rng, known, seen_template=index % 10 not in (2, 5, 8), keyword=keyword))
    return sentences


def _draw_new(rng: np.random.Generator, known: set[str], **choice) -> Sentence:
    while (sentence := draw_sentence(rng, **choice)).text in known:
        pass
    known.add(sentence.text)
    return sentence


def plan_corpus(
    *, hours: float, call_hours: float, test_utterances: int, lm_lines: int, seed: int
) -> tuple[dict[str, list[Utterance]], list[str]]:
    """
    Who says what: the utterances of each of `SETS`, and the texts for a language model.

    Every second wideband recording of training has fragments of sentences, see [`~call_grammar.draw_fragments`], and
    every second text for a language model is a row of words, see [`~call_grammar.draw_word_row`]. Validation sets are
    half as large as test sets and use seen templates and keywords. No sentence of validation or test occurs in
    training, in another of these sets, or in the texts for a language model.
    """
    speakers = draw_speakers(seed)
    lm_rng = np.random.default_rng([seed, 1])
    sentences = draw_training_texts(lm_rng)
    lm_texts = [draw_word_row(lm_rng) if index % 2 else next(sentences).text for index in range(lm_lines)]
    plan, known = {}, set(lm_texts)
    # training first, because the others avoid its sentences
    for name in sorted(SETS, key=lambda name: split_of(name) != "train"):
        rng = np.random.default_rng([seed, 2, SETS.index(name)])
        voices = speakers[split_of(name)]
        plan[name] = []

        def add(sentence: Sentence, name: str = name, rng=rng, voices=voices) -> float:
            voice = voices[rng.integers(len(voices))]
            if split_of(name) == "train":  # every recording another way, so that 14 variants are more than 14 voices
                rate, pitch = rng.integers([157, 25], [219, 76]).tolist()
                scale = rng.uniform(0.87, 1.15)
            else:  # nobody speaks at one rate and pitch all day
                jitter = rng.integers([-8, -5], [9, 6]).tolist()
                rate, pitch, scale = voice.words_per_minute + jitter[0], voice.pitch + jitter[1], 1.0
            voice = voice._replace(words_per_minute=rate, pitch=pitch, formant_scale=scale)
            plan[name].append(Utterance(f"{name}-{len(plan[name]):05d}", sentence, voice))
            return plan[name][-1].expected_s

        if split_of(name) == "train":
            left_s = 3600 * (call_hours if name.startswith("calls") else hours)
            sentences = draw_training_texts(rng)
            for index in itertools.count():
                if name == "train" and index % 2:  # an encoder that knows the templates by heart would not listen
                    sentence = draw_fragments(rng)
                else:
                    sentence = next(sentences)
                known.add(sentence.text)
                left_s -= add(sentence)
                if left_s <= 0:
                    break
        elif split_of(name) == "validation":
            for _ in range(test_utterances // 2):
                add(_draw_new(rng, known))
        else:
            for sentence in draw_test_texts(rng, test_utterances, known):
                add(sentence)
    return {name: plan[name] for name in SETS}, lm_texts


def say(utterance: Utterance, synthesizer: Synthesizer, seed: int) -> np.ndarray:
    """The recording: speech between short pauses, at the speaker's level; (N,) float32 at 16 kHz."""
    speech = synthesizer(utterance.sentence.text, lang="zh", speaker=utterance.speaker)
    rng = generator_of(seed, 0, utterance.id, "call corpus")
    level = generator_of(seed, 0, utterance.speaker.id, "call corpus level").uniform(0.3, 0.8) * rng.uniform(0.9, 1.1)
    before, after = (np.zeros(round(s * SAMPLING_RATE), np.float32) for s in rng.uniform(*PAUSE_S, size=2))
    return np.concatenate([before, speech * np.float32(level / np.abs(speech).max()), after])


@dataclass(frozen=True)
class Shard:
    """Work for one process: utterances of one set, and what babble is made of where they are calls."""

    folder: Path
    name: str
    utterances: list[Utterance]
    seed: int
    format: str
    talkers: list[dict] | None = None


def make_shard(shard: Shard) -> list[dict]:
    """
    Writes the recordings of a shard, and returns their rows for the manifest. To be called once in a process.

    Calls go through the `physical` preset of [`TelephoneChannel`] and are stored at 8 kHz.
    """
    synthesizer = Synthesizer(seed_of(shard.seed, 0, shard.utterances[0].id, "espeak") % 2**31)
    channel = None
    if shard.talkers is not None:
        channel = TelephoneChannel.from_preset("physical").with_noise(shard.talkers, pool_s=TALKERS_S, seed=shard.seed)
    rows = []
    for utterance in shard.utterances:
        wave, rate, extra = say(utterance, synthesizer, shard.seed), SAMPLING_RATE, {}
        if channel is not None:
            wave, draw = channel(wave, sampling_rate=rate, seed=shard.seed, id=utterance.id)
            wave, rate, extra = soxr.resample(wave, rate, CALL_RATE), CALL_RATE, {"channel": draw.to_json()}
        file = f"audio/{shard.name}/{utterance.id}.{shard.format}"
        write_whole(shard.folder / file, encode_audio(wave, rate, format=shard.format))
        sentence = utterance.sentence
        rows.append(
            {
                "audio_filepath": file,
                "duration": len(wave) / rate,
                "text": sentence.text,
                "speaker": utterance.speaker.id,
                "id": utterance.id,
                "template": sentence.template,
                "keyword": sentence.keyword,
                "business": sentence.domain,
                **extra,
            }
        )
    return rows
