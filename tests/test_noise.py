"""Noise and second speakers: NeMo's numbers and distributions, and what NeMo gets wrong put right."""

import dataclasses
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nest_hf.data.noise import MixSegment, MultiSpeakerNoise, NoiseDraw, NoiseSource, SpeakerNoise, render_noise

# Seeded runs of NeMo 3.0.0 on four utterances: the noise it made, and every parameter that it drew on the way.
FIXTURES = Path(__file__).parent / "fixtures" / "noise_aug"
RUNS = json.loads((FIXTURES / "draws.json").read_text())["runs"]
CLASSES = {"SpeakerNoiseAugmentation": SpeakerNoise, "MultiSpeakerNoiseAugmentation": MultiSpeakerNoise}
MANY = {"min_num_segments": 1, "max_num_segments": 4, "min_num_speakers": 1, "max_num_speakers": 3}
BOTH = pytest.mark.parametrize("augmentation", [SpeakerNoise, MultiSpeakerNoise])


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FIXTURES / "noise_aug.npz"))


def generators(seed, keys):
    return [np.random.default_rng([seed, key]) for key in keys]


def make_batch(lengths, *, seed=0, noise_lengths=None, num_samples=None):
    """waves (B, N), lengths (B,), noise (B, N), noise_lengths (B,), without a single zero inside."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    noise_lengths = lengths if noise_lengths is None else np.asarray(noise_lengths)
    num_samples = num_samples or lengths.max()
    inside = np.arange(num_samples) < lengths[:, None]
    noise_inside = np.arange(num_samples) < noise_lengths[:, None]
    waves, noise = rng.uniform(0.1, 0.9, (2, len(lengths), num_samples)).astype(np.float32)
    return waves * inside, lengths, noise * noise_inside, noise_lengths


def power_db(samples):
    return 10 * math.log10(np.mean(np.square(samples, dtype=np.float64)))


# ---- NeMo's numbers


@pytest.mark.parametrize("run", RUNS)
def test_rendering_nemos_draws_gives_nemos_noise(golden, run):
    lengths, noise_lengths = golden["audio_len"], golden["noise_len"]
    waves, clips = golden["audio_int16"] / np.float32(32768), golden["noise_int16"] / np.float32(32768)
    utterances = {row: wave[:length] for row, (wave, length) in enumerate(zip(waves, lengths, strict=True))}
    for row, fields in enumerate(RUNS[run]["rows"]):
        draw = NoiseDraw(**{**fields, "segments": tuple(MixSegment(*segment) for segment in fields["segments"])})
        clip = clips[row, : noise_lengths[row]]
        rendered = render_noise(draw, wave=utterances[row], noise=clip, utterances=utterances)
        np.testing.assert_allclose(rendered, golden[run][row, : lengths[row]], rtol=0, atol=1e-6)
        assert not golden[run][row, lengths[row] :].any()


@pytest.mark.parametrize("run", RUNS)
def test_draws_have_the_form_of_nemos(golden, run):
    augment = CLASSES[RUNS[run]["class"]](**RUNS[run]["kwargs"], keep_raw_noise_when_skipped=True)
    lengths, noise_lengths = golden["audio_len"].tolist(), golden["noise_len"].tolist()
    sizes = dict(enumerate(lengths))
    for row, nemo in enumerate(RUNS[run]["rows"]):
        others = {other: size for other, size in sizes.items() if other != row}
        draws = [
            augment.draw(lengths[row], noise_length=noise_lengths[row], others=others, rng=rng)
            for rng in generators(row, range(400))
        ]
        alike = [draw for draw in draws if draw.kind == nemo["kind"]]
        assert alike
        assert {draw.ratio_over for draw in alike if draw.kind != "raw"} <= {nemo["ratio_over"]}
        for place, (start, length, source, offset) in enumerate(nemo["segments"]):
            ours = [draw.segments[place] for draw in alike if len(draw.segments) > place]
            assert source in {segment.source for segment in ours}
            for name, value in (("start", start), ("length", length), ("offset", offset)):
                values = [getattr(segment, name) for segment in ours]
                slack = 0.05 * lengths[row] if min(values) < max(values) else 0
                assert min(values) - slack <= value <= max(values) + slack, (row, place, name)
        if nemo["ratio_db"] is not None:
            ratios = [draw.ratio_db for draw in alike]
            assert min(ratios) - 1 <= nemo["ratio_db"] <= max(ratios) + 1


def test_ratio_is_the_snr_of_the_whole_utterance():
    batch = make_batch([3200, 2999, 2400, 1777], noise_lengths=[3200, 1500, 2400, 900])
    augment = MultiSpeakerNoise(prob=1.0, noise_ratio=1.0, min_r_noise=10.0, max_r_noise=10.0)
    added, _ = augment(*batch, rngs=generators(0, range(4)))
    for wave, noise, length in zip(batch[0], added, batch[1], strict=True):
        assert power_db(wave[:length]) - power_db(noise[:length]) == pytest.approx(10.0, abs=1e-4)
    nemo = RUNS["multi_fixed_snr_seed0"]
    assert nemo["snr_db"] == pytest.approx([10.0] * 4, abs=1e-4)


def test_ratio_of_the_single_segment_is_over_the_clip():
    waves, lengths, noise, noise_lengths = make_batch([4000, 4000], noise_lengths=[4000, 300])
    augment = SpeakerNoise(prob=1.0, noise_ratio=1.0, min_r_noise=6.0, max_r_noise=6.0)
    added, draws = augment(waves, lengths, noise, noise_lengths, rngs=generators(0, range(2)))
    for row, draw in enumerate(draws):
        (segment,) = draw.segments
        scale = added[row, segment.start] / noise[row, segment.offset]
        clip = np.resize(noise[row, : noise_lengths[row]], max(noise_lengths[row], segment.length))
        assert power_db(waves[row]) - power_db(scale * clip) == pytest.approx(6.0, abs=1e-4)


# ---- distributions


def nemo_segments(length, mix_length, num_segments):
    sizes = list(Counter(random.choices(range(num_segments), k=mix_length)).values())
    starts, low, high = [], 0, length - mix_length
    for size in sizes:
        starts.append(random.randint(low, high - 1) if low < high else low)
        low, high = starts[-1] + size, high + size
    return [value for pair in zip(starts, sizes, strict=True) for value in pair]


@pytest.mark.parametrize("num_segments", [1, 2, 4])
def test_segments_are_placed_as_in_nemo(num_segments):
    random.seed(0)
    augment = MultiSpeakerNoise(prob=1.0, min_num_segments=num_segments, max_num_segments=num_segments)
    nemo = np.array([nemo_segments(1000, 500, num_segments) for _ in range(4000)])
    ours = np.array(
        [
            [
                value
                for s in augment.draw(1000, noise_length=1000, others={}, rng=rng).segments
                for value in (s.start, s.length)
            ]
            for rng in generators(1, range(4000))
        ]
    )
    assert ours.shape == nemo.shape
    error = np.sqrt((ours.var(0) + nemo.var(0)) / 4000)
    np.testing.assert_array_less(np.abs(ours.mean(0) - nemo.mean(0)), 4.5 * error + 1e-9 + 0.6)
    np.testing.assert_allclose(ours.std(0), nemo.std(0), rtol=0.07)
    np.testing.assert_allclose(
        np.quantile(ours, [0.1, 0.5, 0.9], axis=0), np.quantile(nemo, [0.1, 0.5, 0.9], axis=0), atol=25
    )


def test_segments_cover_exactly_the_mix_rate_without_overlap():
    augment = MultiSpeakerNoise(prob=1.0, min_mix_rate=0.4, max_mix_rate=0.4, **MANY)
    batch = make_batch([1000, 777, 500])
    for seed in range(50):
        added, draws = augment(*batch, rngs=generators(seed, range(3)))
        for noise, draw, length in zip(added, draws, batch[1], strict=True):
            assert np.count_nonzero(noise) == sum(s.length for s in draw.segments) == int(0.4 * length)
            assert 1 <= len(draw.segments) <= 4
            ends = [s.start + s.length for s in draw.segments]
            assert all(end <= s.start for end, s in zip(ends, draw.segments[1:], strict=False)) and ends[-1] <= length


@BOTH
def test_shares_and_ranges(augmentation):
    augment = augmentation(noise_ratio=0.3, min_mix_rate=0.2, max_mix_rate=0.9)
    others = {"b": 1500, "c": 800}
    draws = [augment.draw(1000, noise_length=700, others=others, rng=rng) for rng in generators(0, range(4000))]
    kinds = Counter(draw.kind for draw in draws)
    assert kinds["none"] / 4000 == pytest.approx(0.5, abs=0.035)
    assert kinds["noise"] / (kinds["noise"] + kinds["speech"]) == pytest.approx(0.3, abs=0.045)
    for kind, low, high in (("noise", -5, 20), ("speech", -5, 5)):
        ratios = np.array([draw.ratio_db for draw in draws if draw.kind == kind])
        assert low <= ratios.min() and ratios.max() <= high
        assert ratios.mean() == pytest.approx((low + high) / 2, abs=1)
        assert ratios.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)
    rates = np.array([sum(s.length for s in draw.segments) / 1000 for draw in draws if draw.segments])
    assert 0.2 <= rates.min() < 0.21 and 0.89 < rates.max() <= 0.9 and rates.mean() == pytest.approx(0.55, abs=0.02)
    sources = Counter(s.source for draw in draws if draw.kind == "speech" for s in draw.segments)
    assert sources["b"] / sources.total() == pytest.approx(0.5, abs=0.06)
    offsets = np.array([s.offset for draw in draws for s in draw.segments if s.source == "b"])
    assert offsets.max() > 800 and all(
        s.offset + s.length <= 1500 for d in draws for s in d.segments if s.source == "b"
    )


def test_speakers_take_turns():
    augment = MultiSpeakerNoise(prob=1.0, noise_ratio=0.0, min_num_segments=6, max_num_segments=6, max_num_speakers=3)
    others = {name: 500 for name in "bcdef"}
    draws = [augment.draw(1000, noise_length=0, others=others, rng=rng) for rng in generators(0, range(300))]
    counts, restarts = Counter(), Counter()
    for draw in draws:
        turns = [s.source for s in draw.segments]
        speakers = list(dict.fromkeys(turns))
        assert turns[: len(speakers)] == speakers
        # after the last speaker anyone may go on, after any other the next one does
        for now, then in zip(turns, turns[1:], strict=False):
            assert now == speakers[-1] or speakers.index(then) == speakers.index(now) + 1
        if len(speakers) == 3:
            restarts[speakers.index(turns[3])] += 1
        counts[len(speakers)] += 1
    assert set(counts) == {1, 2, 3}
    assert min(restarts[place] for place in range(3)) > 0.2 * restarts.total()


def test_noise_clip_is_used_up_from_its_beginning_and_repeated():
    batch = make_batch([1000], noise_lengths=[70])
    augment = MultiSpeakerNoise(prob=1.0, min_num_segments=3, max_num_segments=3)
    added, _ = augment(*batch, rngs=generators(0, [0]))
    heard = added[0][added[0] != 0]
    expected = np.resize(batch[2][0, :70], 500)
    np.testing.assert_allclose(heard / heard[0], expected / expected[0], rtol=1e-5)


# ---- randomness


@BOTH
def test_the_same_generators_give_the_same_noise(augmentation):
    batch = make_batch([900, 800, 700])
    first, draws = augmentation(prob=0.8)(*batch, rngs=generators(3, range(3)))
    again, same_draws = augmentation(prob=0.8)(*batch, rngs=generators(3, range(3)))
    other, _ = augmentation(prob=0.8)(*batch, rngs=generators(4, range(3)))
    np.testing.assert_array_equal(first, again)
    assert draws == same_draws
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("augment", [SpeakerNoise(prob=0.9), MultiSpeakerNoise(prob=0.9, **MANY)])
def test_noise_does_not_depend_on_the_order_or_padding_of_the_batch(augment):
    lengths, ids, order = [900, 800, 1, 700, 333], [11, 5, 7, 2, 3], [3, 0, 4, 2, 1]
    waves, lengths, noise, noise_lengths = make_batch(lengths, num_samples=1000)
    for seed in range(20):
        added, draws = augment(waves, lengths, noise, noise_lengths, rngs=generators(seed, ids), ids=ids)
        rows = [array[order, :900] for array in (waves, noise)]
        mixed, mixed_draws = augment(
            rows[0], lengths[order], rows[1], noise_lengths[order],
            rngs=generators(seed, np.take(ids, order)), ids=[ids[row] for row in order],
        )  # fmt: skip
        np.testing.assert_array_equal(mixed, added[order, :900])
        assert mixed_draws == [draws[row] for row in order]


@BOTH
def test_inputs_are_not_changed_and_padding_stays_silent(augmentation):
    batch = make_batch([900, 800, 300])
    before = [array.copy() for array in batch]
    added, _ = augmentation(prob=1.0)(*batch, rngs=generators(0, range(3)))
    for array, copy in zip(batch, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert added.dtype == np.float32 and added.shape == batch[0].shape
    assert all(not noise[length:].any() for noise, length in zip(added, batch[1], strict=True))


@BOTH
def test_an_utterance_is_never_its_own_second_speaker(augmentation):
    ids = ["a", "b", "a", "b"]
    batch = make_batch([900, 800, 900, 800])
    for seed in range(30):
        _, draws = augmentation(prob=1.0, noise_ratio=0.0)(*batch, rngs=generators(seed, range(4)), ids=ids)
        for own, draw in zip(ids, draws, strict=True):
            assert draw.kind == "speech" and {s.source for s in draw.segments} == set("ab") - {own}


def test_a_draw_can_be_stored_and_rendered_again():
    augment = MultiSpeakerNoise(prob=1.0, noise_ratio=0.0, **MANY)
    waves, lengths, noise, noise_lengths = make_batch([900, 800, 700])
    added, draws = augment(waves, lengths, noise, noise_lengths, rngs=generators(0, range(3)), ids=["a", "b", "c"])
    row = json.loads(json.dumps(dataclasses.asdict(draws[0])))
    draw = NoiseDraw(**{**row, "segments": tuple(MixSegment(**segment) for segment in row["segments"])})
    assert draw == draws[0]
    utterances = {"b": waves[1, :800], "c": waves[2, :700]}
    np.testing.assert_array_equal(
        render_noise(draw, wave=waves[0, :900], noise=noise[0], utterances=utterances), added[0]
    )


# ---- where NeMo is wrong


@BOTH
def test_skipped_utterances_are_clean(augmentation):
    batch = make_batch([900, 800], noise_lengths=[900, 300])
    added, draws = augmentation(prob=0.0)(*batch, rngs=generators(0, range(2)))
    assert not added.any() and draws == [NoiseDraw(), NoiseDraw()]


@BOTH
def test_option_keeps_the_raw_noise_of_skipped_utterances(augmentation):
    waves, lengths, noise, noise_lengths = make_batch([900, 800, 700], noise_lengths=[900, 300, 0])
    augment = augmentation(prob=0.0, keep_raw_noise_when_skipped=True)
    added, draws = augment(waves, lengths, noise, noise_lengths, rngs=generators(0, range(3)))
    np.testing.assert_array_equal(added, noise)
    assert [draw.kind for draw in draws] == ["raw", "raw", "none"]


@BOTH
@pytest.mark.parametrize("silent", ["waves", "noise", "both"])
@pytest.mark.parametrize("noise_ratio", [0.0, 1.0])
def test_silence_gives_no_noise(augmentation, silent, noise_ratio):
    waves, lengths, noise, noise_lengths = make_batch([900, 800])
    waves = waves if silent == "noise" else np.zeros_like(waves)
    noise = noise if silent == "waves" else np.zeros_like(noise)
    augment = augmentation(prob=1.0, noise_ratio=noise_ratio)
    added, _ = augment(waves, lengths, noise, noise_lengths, rngs=generators(0, range(2)))
    assert np.isfinite(added).all()
    assert added.any() == (silent == "noise" and noise_ratio == 0.0)


@pytest.mark.parametrize("mix_rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "augment",
    [
        SpeakerNoise,
        MultiSpeakerNoise,
        lambda **rates: MultiSpeakerNoise(min_num_segments=9, max_num_segments=9, **rates),
    ],
)
def test_tiny_lengths_are_finite(augment, mix_rate):
    batch = make_batch([1, 2, 0, 5, 3], noise_lengths=[1, 0, 0, 2, 5])
    augment = augment(prob=1.0, min_mix_rate=mix_rate, max_mix_rate=mix_rate)
    for seed in range(50):
        added, draws = augment(*batch, rngs=generators(seed, range(5)))
        assert np.isfinite(added).all() and not added[2].any() and draws[2].kind == "none"
        for draw, length in zip(draws, batch[1], strict=True):
            if draw.kind != "none":
                assert sum(s.length for s in draw.segments) == max(1, int(length * mix_rate))
                assert all(s.length > 0 for s in draw.segments)
        assert 2 not in {s.source for draw in draws for s in draw.segments}


@BOTH
def test_alone_in_the_batch_it_gets_noise_and_without_noise_stays_clean(augmentation):
    augment = augmentation(prob=1.0, noise_ratio=0.0)
    added, (draw,) = augment(*make_batch([900]), rngs=generators(0, [0]))
    assert draw.kind == "noise" and added.any()
    added, (draw,) = augment(*make_batch([900], noise_lengths=[0]), rngs=generators(0, [0]))
    assert draw == NoiseDraw() and not added.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prob": 1.5}, "`prob` is 1.5"),
        ({"min_r_noise": 30.0}, "`min_r_noise` is 30.0 and `max_r_noise` is 20.0"),
        ({"min_mix_rate": 0.9}, "`min_mix_rate`"),
        ({"max_mix_rate": 1.1}, "`max_mix_rate` is 1.1"),
        ({"min_num_segments": 0}, "`min_num_segments` is 0"),
        ({"max_num_speakers": 0}, "`max_num_speakers` is 0"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiSpeakerNoise(**arguments)


def test_bad_batches_are_named():
    waves, lengths, noise, noise_lengths = make_batch([9, 8])
    augment, rngs = SpeakerNoise(), generators(0, range(2))
    with pytest.raises(ValueError, match="`rngs` has 1 rows but `waves` has 2"):
        augment(waves, lengths, noise, noise_lengths, rngs=rngs[:1])
    with pytest.raises(ValueError, match="`waves` is int16"):
        augment(waves.astype(np.int16), lengths, noise, noise_lengths, rngs=rngs)
    with pytest.raises(ValueError, match="`noise` has 9 samples per row but a length is 10"):
        augment(waves, lengths, noise, noise_lengths + 1, rngs=rngs)


# ---- NoiseSource


def write_clip(path, samples, *, rate=16000, **row):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    audio = {"bytes": None, "path": str(path)}
    return {"id": path.stem, "audio": audio, "offset": 0.0, "duration": len(samples) / rate, **row}


def ramp(num_samples):
    return (np.arange(1, num_samples + 1) / 2**20).astype(np.float32)


def test_windows_of_a_long_clip_are_uniform_and_only_they_are_read(tmp_path, monkeypatch):
    source = NoiseSource([write_clip(tmp_path / "long.wav", ramp(64000))])
    read, counts = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, n, **kw: counts.append(n) or read(file, n, **kw))
    starts = []
    for rng in generators(0, range(300)):
        samples, noise_length = source.draw(16000, rng)
        assert samples.dtype == np.float32 and samples.shape == (16000,) and noise_length == 16000
        starts.append(round(float(samples[0]) * 2**20) - 1)
        np.testing.assert_array_equal(samples, ramp(64000)[starts[-1] :][:16000])
    assert max(counts) <= 16000 + 16
    assert np.mean(starts) == pytest.approx(24000, abs=3000) and np.std(starts) == pytest.approx(13856, rel=0.1)
    assert (source.num_draws, source.num_repeated) == (300, 0)


def test_windows_stay_inside_offset_and_duration(tmp_path):
    row = write_clip(tmp_path / "part.wav", ramp(64000), offset=1.0, duration=2.0)
    source = NoiseSource([row])
    for rng in generators(0, range(100)):
        samples, _ = source.draw(8000, rng)
        assert 16000 <= round(float(samples[0]) * 2**20) - 1 <= 40000


def test_a_clip_without_a_duration_gives_windows_too(tmp_path):
    source = NoiseSource([write_clip(tmp_path / "unknown.wav", ramp(4000), offset=None, duration=None)])
    starts = {float(source.draw(1000, rng)[0][0]) for rng in generators(0, range(20))}
    assert len(starts) > 10 and source.num_repeated == 0


def test_short_clips_are_repeated_or_zero_padded(tmp_path):
    row = write_clip(tmp_path / "short.wav", ramp(300))
    repeating, padding = NoiseSource([row]), NoiseSource([row], short_noise="zero")
    samples, noise_length = repeating.draw(1000, np.random.default_rng(0))
    np.testing.assert_array_equal(samples, np.resize(ramp(300), 1000))
    assert (noise_length, repeating.num_repeated) == (1000, 1)
    samples, noise_length = padding.draw(1000, np.random.default_rng(0))
    np.testing.assert_array_equal(samples, np.pad(ramp(300), (0, 700)))
    assert (noise_length, padding.num_repeated) == (300, 0)


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_other_rates_give_whole_windows_or_are_refused(tmp_path, rate):
    row = write_clip(tmp_path / "rate.wav", ramp(rate), rate=rate)
    source = NoiseSource([row])
    for num_samples in (999, 1600, 4001):
        for rng in generators(num_samples, range(10)):
            assert source.draw(num_samples, rng)[0].shape == (num_samples,)
    assert source.num_repeated == 0
    with pytest.raises(ValueError, match="wrong sampling rate"):
        NoiseSource([row], resample=False).draw(100, np.random.default_rng(0))


def test_a_draw_depends_on_its_generator_alone(tmp_path):
    rows = [write_clip(tmp_path / f"{size}.wav", ramp(size)) for size in (500, 2000, 4000)]
    first, second = NoiseSource(rows), NoiseSource(rows)
    forward = [first.draw(1000, rng)[0] for rng in generators(0, range(10))]
    backward = [second.draw(1000, rng)[0] for rng in reversed(generators(0, range(10)))]
    np.testing.assert_array_equal(forward, backward[::-1])
    assert len({float(samples[0]) for samples in forward}) > 3


def test_unreadable_clips_are_counted_and_replaced(tmp_path):
    good = write_clip(tmp_path / "good.wav", ramp(2000))
    missing = {**good, "id": "missing", "audio": {"bytes": None, "path": str(tmp_path / "none.wav")}}
    broken = {**good, "id": "broken", "audio": {"bytes": b"no audio", "path": None}}
    source = NoiseSource([missing, good, broken])
    for rng in generators(0, range(20)):
        assert source.draw(1000, rng)[0].all()
    assert source.bad_clips == {"missing": "missing file", "broken": "unreadable"}
    assert source.num_draws == 20
    with pytest.raises(ValueError, match="20 noise clips in a row cannot be read: .*missing.*; repair or remove"):
        NoiseSource([missing]).draw(1000, np.random.default_rng(0))


@pytest.mark.parametrize("size", [4000, 300])
def test_a_silent_clip_becomes_white_noise(tmp_path, size):
    source = NoiseSource([write_clip(tmp_path / "silent.wav", np.zeros(size, np.float32))])
    drawn = [source.draw(1000, rng)[0] for rng in generators(0, range(200))]
    levels = [power_db(samples) for samples in drawn]
    assert all(samples.dtype == np.float32 for samples in drawn) and source.num_silent == 200
    assert -91 < min(levels) < -88 and -49 < max(levels) < -46
    assert np.mean(levels) == pytest.approx(-68.5, abs=3)


def test_bad_noise_sources_are_named():
    with pytest.raises(ValueError, match="`rows` has no noise clips"):
        NoiseSource([])
    with pytest.raises(ValueError, match="`short_noise` is 'loop'"):
        NoiseSource([{"id": "a"}], short_noise="loop")


def test_a_dataset_can_be_the_source(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [write_clip(tmp_path / f"{size}.wav", ramp(size)) for size in (500, 2000)]
    listed, stored = NoiseSource(rows), NoiseSource(datasets.Dataset.from_list(rows))
    for seed in range(5):
        ours, same = (source.draw(800, np.random.default_rng(seed))[0] for source in (listed, stored))
        np.testing.assert_array_equal(ours, same)
