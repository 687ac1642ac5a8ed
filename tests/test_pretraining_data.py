"""Batches of pretraining: whatever is random depends on (seed, epoch, id) alone, and bad recordings are named."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from recordings import make_recordings
from torch.utils.data import DataLoader

from nest_hf import NestConfig, NestFeatureExtractor, NestForPreTraining
from nest_hf.data import (
    AudioError,
    ExampleKey,
    MultiSpeakerNoise,
    NoiseSource,
    PretrainingCollator,
    PretrainingDataset,
    StreamedBatches,
    load_speech_dataset,
)
from nest_hf.data.pretraining import seed_of
from nest_hf.masking import frames_in_loss

CONFIG = NestConfig.from_preset("tiny", mask_prob=0.02)
QUIET = NestFeatureExtractor(dither=0.0)
NOISE_ONLY = MultiSpeakerNoise(prob=0.6, noise_ratio=1.0)  # an example's noise then depends on no other one
TENSORS = ("input_features", "target_features", "attention_mask", "mask_time_indices", "labels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    make_recordings(folder / "speech", number=8, seed=1)
    make_recordings(folder / "noise", number=2, seed=2, min_s=1.0, max_s=2.0)  # often shorter than the speech
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return load_speech_dataset(str(folder / "speech" / "manifest.jsonl"))


@pytest.fixture(scope="module")
def noise(folder):
    return NoiseSource(load_speech_dataset(str(folder / "noise" / "manifest.jsonl")))


def collator_of(config=CONFIG, extractor=None, *, augmentation=NOISE_ONLY, **arguments) -> PretrainingCollator:
    return PretrainingCollator(config, extractor or NestFeatureExtractor(), augmentation=augmentation, **arguments)


def batch_of(dataset, keys, collator) -> dict:
    return collator([dataset[ExampleKey(*key) if key else key] for key in keys])


def items_of(batch: dict) -> dict[str, dict[str, torch.Tensor]]:
    """id -> its tensors without padding."""
    items = {}
    for row, key in enumerate(batch["ids"]):
        frames = int(batch["attention_mask"][row].sum())
        cut = {name: batch[name][row][:frames] for name in TENSORS[:4]}
        items[key] = {**cut, "labels": batch["labels"][row][: -(-frames // 8)]}
    return items


def assert_same_items(one: dict, other: dict, *, atol: float = 2e-4) -> None:
    # Features of another batch differ by the rounding of another FFT; noise, dither or masks would differ by far more.
    assert set(one) == set(other)
    for key in one:
        for name in TENSORS:
            tolerance = {"rtol": 0, "atol": atol if name.endswith("features") else 0}
            torch.testing.assert_close(one[key][name], other[key][name], **tolerance)


@pytest.mark.parametrize("extractor", [NestFeatureExtractor(), NestFeatureExtractor(dither=1e-3)])
def test_an_example_is_the_same_in_any_batch_and_any_order(rows, noise, extractor):
    dataset, collator = PretrainingDataset(rows, noise=noise, seed=5), collator_of(extractor=extractor, seed=5)
    whole = items_of(batch_of(dataset, [(3, (row,)) for row in range(8)], collator))
    reversed_ = items_of(batch_of(dataset, [(3, (row,)) for row in reversed(range(8))], collator))
    pairs = {}
    for row in range(0, 8, 2):  # an utterance alone in its batch has no second speaker to draw, and so other noise
        pairs |= items_of(batch_of(dataset, [(3, (row,)), (3, (row + 1,))], collator))
    assert_same_items(whole, reversed_)
    assert_same_items(whole, pairs)
    assert (torch.cat([item["labels"] for item in whole.values()]) == 0).any()


def test_second_speakers_depend_on_who_is_in_the_batch_and_not_on_the_order(rows, noise):
    dataset, collator = PretrainingDataset(rows, noise=noise), collator_of(augmentation=MultiSpeakerNoise(prob=1.0))
    batches = [
        batch_of(dataset, [(0, (row,)) for row in order], collator) for order in (range(8), [5, 1, 7, 0, 2, 6, 4, 3])
    ]
    assert_same_items(*map(items_of, batches))


def test_the_number_of_workers_changes_nothing(rows, noise):
    plan = [[ExampleKey(1, (row, row + 1)), ExampleKey(1, (row + 2,))] for row in range(5)]
    dataset, collator = PretrainingDataset(rows, noise=noise), collator_of(augmentation=MultiSpeakerNoise())
    loads = [
        list(DataLoader(dataset, batch_sampler=plan, collate_fn=collator, num_workers=workers)) for workers in (0, 2)
    ]
    for one, other in zip(*loads, strict=True):
        assert one["ids"] == other["ids"]
        assert all(torch.equal(one[name], other[name]) for name in TENSORS[2:])
        for name in TENSORS[:2]:  # a worker has one thread
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=2e-4)


def test_seeds_are_the_same_in_every_process_and_differ_by_all_that_they_are_made_of():
    assert seed_of(0, 1, "a", "mask") == 879917048168034414  # Python's own hash would differ by process
    keys = [(0, 1, "a", "x"), (1, 1, "a", "x"), (0, 2, "a", "x"), (0, 1, "b", "x"), (0, 1, "a", "y"), (0, 11, "", "x")]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_another_epoch_or_seed_has_other_noise_and_masks(rows, noise):
    def draw(epoch: int, seed: int) -> dict:
        dataset = PretrainingDataset(rows, noise=noise, seed=seed)
        return batch_of(dataset, [(epoch, (row,)) for row in range(8)], collator_of(extractor=QUIET, seed=seed))

    first = draw(0, 0)
    assert torch.equal(first["input_features"], draw(0, 0)["input_features"])
    for other in (draw(1, 0), draw(0, 1)):
        assert torch.equal(first["target_features"], other["target_features"])  # the clean speech stays
        assert not torch.equal(first["input_features"], other["input_features"])
        assert not torch.equal(first["mask_time_indices"], other["mask_time_indices"])


def test_the_targets_are_the_features_of_the_clean_wave(rows, noise, folder):
    batch = batch_of(
        PretrainingDataset(rows, noise=noise), [(0, (row,)) for row in range(8)], collator_of(extractor=QUIET)
    )
    waves = [soundfile.read(folder / "speech" / f"{row}.wav", dtype="float32")[0] for row in range(8)]
    expected = QUIET(waves, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(batch["target_features"], expected["input_features"], rtol=0, atol=2e-4)
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    padding = ~batch["attention_mask"]
    assert padding.any()
    for name in TENSORS[:2]:
        assert not batch[name][padding].any()
    assert not batch["mask_time_indices"][padding].any()


def test_noise_is_added_where_the_draw_says_and_nowhere_else(rows, noise):
    dataset = PretrainingDataset(rows, noise=noise, seed=2)
    collator = collator_of(extractor=QUIET, seed=2)
    examples = [dataset[ExampleKey(0, (row,))] for row in range(8)]
    clean, noisy, lengths = collator.waveforms(examples)
    kinds = Counter()
    for example, wave, mixed, length in zip(examples, clean, noisy, lengths, strict=True):
        rng = np.random.default_rng(seed_of(2, 0, example.id, "noise"))
        draw = NOISE_ONLY.draw(length, noise_length=example.noise_length, others={"x": 1}, rng=rng)
        inside = np.zeros(len(wave), bool)
        for segment in draw.segments:
            inside[segment.start : segment.start + segment.length] = True
        assert np.array_equal(wave[~inside], mixed[~inside])
        assert (wave[inside] != mixed[inside]).mean() > 0.99 if inside.any() else draw.kind == "none"
        kinds[draw.kind] += 1
    assert set(kinds) == {"none", "noise"}
    batch = collator(examples)
    same = [torch.equal(*pair) for pair in zip(batch["input_features"], batch["target_features"], strict=True)]
    assert sum(same) == kinds["none"]


def test_without_augmentation_noisy_is_clean_but_for_the_dither(rows):
    dataset, keys = PretrainingDataset(rows), [(0, (0,)), (0, (1,))]
    validation = batch_of(dataset, keys, collator_of(augmentation=None, dither=False))
    assert torch.equal(validation["input_features"], validation["target_features"])
    training = batch_of(dataset, keys, collator_of(augmentation=None))
    assert not torch.equal(training["input_features"], training["target_features"])
    # dither is drawn per epoch, and changes little
    again = batch_of(dataset, [(1, (0,)), (1, (1,))], collator_of(augmentation=None))
    assert not torch.equal(training["target_features"], again["target_features"])
    assert (training["target_features"] - validation["target_features"]).abs().mean() < 0.01


@pytest.mark.parametrize("position", ["pre_conv", "post_conv"])
def test_labels_are_the_frames_in_the_loss(rows, position):
    config = NestConfig.from_preset("tiny", mask_position=position, mask_prob=0.05, mask_block_size=8)
    batch = batch_of(PretrainingDataset(rows), [(0, (row,)) for row in range(8)], collator_of(config))
    size, frames = batch["attention_mask"].shape
    masked = batch["mask_time_indices"]
    assert masked.shape == (size, frames if position == "pre_conv" else frames // 8)
    in_loss = frames_in_loss(masked, config.masked_frames_per_label, config.mask_threshold)
    assert torch.equal(batch["labels"], torch.where(in_loss, 0, -100)) and batch["labels"].shape == (size, frames // 8)
    assert in_loss.any()
    torch.manual_seed(0)
    model = NestForPreTraining(config).train()
    inputs = {name: batch[name] for name in TENSORS}
    assert model(**inputs).loss.isfinite()
    if position == "post_conv":
        valid = torch.arange(frames // 8) < -(-batch["attention_mask"].sum(-1, keepdim=True) // 8)
        assert not masked[~valid].any()


def test_joined_rows_are_concatenated_under_a_joint_id(rows, noise):
    dataset = PretrainingDataset(rows, noise=noise)
    joined, parts = dataset[ExampleKey(0, (4, 1))], [dataset[ExampleKey(0, (row,))] for row in (4, 1)]
    assert joined.id == "speech4+speech1"
    assert np.array_equal(joined.wave, np.concatenate([part.wave for part in parts]))
    assert joined.noise_length == len(joined.noise) == len(joined.wave)


def odd_rows(tmp_path) -> list[dict]:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 32000).astype(np.float32)
    soundfile.write(tmp_path / "good.wav", wave, 16000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, -wave / 2], 1), 16000)
    soundfile.write(tmp_path / "8k.wav", wave[:16000], 8000)
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(32000) == 7, np.nan, wave), 16000, subtype="FLOAT")
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF")
    names = ("good", "stereo", "8k", "nan", "corrupt", "missing")
    return [
        {"id": name, "audio": {"bytes": None, "path": str(tmp_path / f"{name}.wav")}, "offset": 0.0, "duration": 2.0}
        for name in names
    ]


def test_bad_audio_fails_by_default_with_the_id_and_the_remedy(tmp_path):
    dataset = PretrainingDataset(odd_rows(tmp_path))
    for row, reason in ((3, "NaN samples"), (4, "unreadable"), (5, "missing file")):
        name = dataset.rows[row]["id"]
        with pytest.raises(AudioError, match=rf"recording '{name}': .*--on_bad_audio skip leaves") as error:
            dataset[ExampleKey(0, (row,))]
        assert error.value.reason == reason
    with pytest.raises(AudioError, match=r"recording '8k': .*8000 Hz and 16000 Hz.*--resample true"):
        PretrainingDataset(dataset.rows, resample=False)[ExampleKey(0, (2,))]
    with pytest.raises(ValueError, match="`on_bad_audio` is 'warn'; choose `fail` or `skip`"):
        PretrainingDataset([], on_bad_audio="warn")


def test_skipped_audio_is_noted_and_the_batch_goes_on_without_it(tmp_path, noise):
    rows = odd_rows(tmp_path)
    dataset = PretrainingDataset(rows, noise=noise, on_bad_audio="skip")
    batch = batch_of(dataset, [(0, (row,)) for row in range(6)], collator_of())
    assert batch["ids"] == ["good", "stereo", "8k"] and len(batch["input_features"]) == 3
    notes = {(recording, kind): message for recording, kind, message in batch["notes"]}
    assert notes["stereo", "stereo"] == "2 channels averaged" and notes["8k", "resampled"] == "8000 Hz"
    reasons = {recording: message.split(":")[0] for (recording, kind), message in notes.items() if kind == "bad"}
    assert reasons == {"nan": "NaN samples", "corrupt": "unreadable", "missing": "missing file"}
    assert len(notes) == 5
    # of joined rows the others stay
    example = dataset[ExampleKey(0, (4, 0))]
    assert np.array_equal(example.wave, dataset[ExampleKey(0, (0,))].wave) and len(example.notes) == 1


@pytest.mark.parametrize(
    "masking", [{}, {"mask_version": "2.x"}, {"mask_allow_overlap": False, "mask_prob": 0.5, "mask_block_size": 8}]
)
def test_a_batch_without_any_usable_recording_has_no_loss_and_no_nan(tmp_path, noise, masking):
    config = NestConfig.from_preset("tiny", **masking)
    dataset = PretrainingDataset(odd_rows(tmp_path), noise=noise, on_bad_audio="skip")
    batch = batch_of(dataset, [(0, (3,)), (0, (5,))], collator_of(config))
    assert len(batch["notes"]) == 2 and (batch["labels"] == -100).all()
    torch.manual_seed(0)
    model = NestForPreTraining(config).train()
    out = model(**{name: batch[name] for name in TENSORS})
    assert out.loss == 0.0 and out.num_correct == 0
    out.loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(not grad.any() for grad in grads)  # and so no NaN


def test_bad_noise_clips_are_noted_and_replaced(rows, tmp_path, noise):
    broken = {"id": "broken", "audio": {"path": str(tmp_path / "no.wav")}, "offset": 0.0, "duration": 9.0}
    clips = NoiseSource([*noise.rows, broken])
    dataset = PretrainingDataset(rows, noise=clips)
    examples = [dataset[ExampleKey(epoch, (row,))] for epoch in range(3) for row in range(8)]
    assert [note for example in examples for note in example.notes] == [("broken", "bad", "noise clip: missing file")]
    assert all(example.noise_length == len(example.wave) for example in examples)


# ---- streams


def streamed(
    folder, *, rank: int = 0, num_replicas: int = 1, budget_s: float = 8.0, window: int = 4, seed: int = 0, **more
):
    source = load_speech_dataset(str(folder / "speech" / "manifest.jsonl"), streaming=True)
    examples = PretrainingDataset(None, seed=seed, **more)
    return StreamedBatches(
        source,
        examples,
        collator_of(),
        budget_s=budget_s,
        window=window,
        seed=seed,
        num_replicas=num_replicas,
        rank=rank,
    )


def ids_of_passes(dataset: StreamedBatches, num_passes: int, num_workers: int = 0) -> list[list[str]]:
    """The ids of the first passes over the data."""
    dataset.collator = keys_of
    passes = [[] for _ in range(num_passes)]
    for batch in DataLoader(dataset, batch_size=None, num_workers=num_workers):
        for epoch, key in batch:
            if epoch == num_passes + 20:  # workers need not be in the same pass
                return passes
            if epoch < num_passes:
                passes[epoch].append(key)


def keys_of(examples) -> list[tuple[int, str]]:
    return [(example.epoch, example.id) for example in examples]


@pytest.mark.parametrize(("num_replicas", "num_workers"), [(1, 0), (2, 0), (1, 2)])
def test_a_stream_gives_every_row_once_per_pass(folder, num_replicas, num_workers):
    shares = [
        ids_of_passes(streamed(folder, rank=rank, num_replicas=num_replicas), 3, num_workers)
        for rank in range(num_replicas)
    ]
    passes = [sum(parts, []) for parts in zip(*shares, strict=True)]
    for ids in passes:
        assert sorted(ids) == [f"speech{row}" for row in range(8)]
    assert passes[0] != passes[1]


def test_a_streamed_batch_keeps_the_budget_and_a_longer_row_is_noted(folder, rows):
    batches = list(islice(streamed(folder, budget_s=6.0), 12))
    sizes = [int(batch["attention_mask"].sum(-1).max()) * len(batch["ids"]) for batch in batches]
    assert max(sizes) <= 600 and max(len(batch["ids"]) for batch in batches) > 1
    longest = max(rows["duration"])
    batches = list(islice(streamed(folder, budget_s=longest - 0.01), 8))
    notes = [note for batch in batches for note in batch["notes"]]
    assert {kind for _, kind, _ in notes} == {"bad"}
    assert {key for key, _, _ in notes} == {row["id"] for row in rows if row["duration"] == longest}
    assert all(message == f"longer than the limit: {longest:.2f} s" for *_, message in notes)
    assert all(int(batch["attention_mask"].sum(-1).max()) <= longest * 100 for batch in batches)


def test_a_stream_leaves_out_and_notes_what_is_too_short_or_too_long(folder, rows):
    dataset = streamed(folder)
    dataset.limits_s = (2.0, 2.7)
    ids, notes = set(), set()
    for batch in islice(dataset, 12):
        ids |= set(batch["ids"])
        notes |= {key for key, kind, _ in batch["notes"] if kind == "bad"}
    assert ids - {"no usable recording"} == {row["id"] for row in rows if 2.0 <= row["duration"] <= 2.7}
    assert notes == {row["id"] for row in rows if not 2.0 <= row["duration"] <= 2.7}


def test_a_stream_is_a_function_of_its_seed(folder):
    def draw(seed: int) -> list[dict]:
        return list(islice(streamed(folder, seed=seed), 8))

    for one, other in zip(draw(1), draw(1), strict=True):
        assert one["ids"] == other["ids"]
        assert all(torch.equal(one[name], other[name]) for name in TENSORS)
    assert [batch["ids"] for batch in draw(1)] != [batch["ids"] for batch in draw(2)]
