"""Streamed batches resume where they stopped, and skip without decoding."""

import json
from itertools import islice

import pytest
from accelerate import skip_first_batches
from recordings import make_recordings
from torch.utils.data import DataLoader

from nest_hf.data.audio import AudioError
from nest_hf.data.pretraining import PretrainingDataset, StreamedBatches
from nest_hf.data.sources import load_speech_dataset

NUM_ROWS = 11


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_recordings(tmp_path_factory.mktemp("stream") / "speech", number=NUM_ROWS, seed=1)


def keys_of(examples) -> list[tuple[int, str]]:
    return [(example.epoch, example.id) for example in examples]


def streamed(manifest, *, rank: int = 0, num_replicas: int = 1, **more) -> StreamedBatches:
    rows = load_speech_dataset(manifest, streaming=True)
    options = {"budget_s": 8.0, "window": 4, "num_replicas": num_replicas, "rank": rank, **more}
    return StreamedBatches(rows, PretrainingDataset(None), keys_of, **options)


def loader_of(dataset, num_workers: int) -> DataLoader:
    return DataLoader(dataset, batch_size=None, num_workers=num_workers)


@pytest.mark.parametrize(("rank", "num_replicas", "num_workers"), [(0, 1, 0), (1, 2, 0), (0, 1, 2)])
def test_a_resumed_stream_gives_the_rest_of_the_batches_in_any_epoch(manifest, rank, num_replicas, num_workers):
    def make():
        return streamed(manifest, rank=rank, num_replicas=num_replicas)

    whole = list(islice(loader_of(make(), num_workers), 24))
    assert {batch[0][0] for batch in whole} >= {0, 1, 2}
    for skipped in (1, 5, 11, 18):
        dataset = make()
        dataset.num_skipped = skipped
        rest = islice(skip_first_batches(loader_of(dataset, num_workers), skipped), 24 - skipped)
        assert list(rest) == whole[skipped:]


def test_what_is_skipped_is_not_decoded(manifest, monkeypatch):
    decoded = []
    example = PretrainingDataset.example
    monkeypatch.setattr(PretrainingDataset, "example", lambda *args: decoded.append(args) or example(*args))
    dataset = streamed(manifest)
    whole = list(islice(dataset, 9))
    decoded.clear()
    dataset.num_skipped = 8
    assert list(islice(dataset, 9)) == [None] * 8 + whole[8:]
    assert len(decoded) == len(whole[8])


def test_only_the_batch_that_is_due_is_in_memory(manifest, monkeypatch):
    decoded = []
    example = PretrainingDataset.example
    monkeypatch.setattr(PretrainingDataset, "example", lambda *args: decoded.append(args) or example(*args))
    batch = next(iter(streamed(manifest, window=NUM_ROWS)))
    assert len(decoded) == len(batch) < NUM_ROWS


def test_lengths_that_are_not_given_come_from_the_headers(manifest):
    given, bare = streamed(manifest), streamed(manifest)
    bare.stream = bare.stream.map(lambda row: {"duration": None})
    assert next(iter(bare.stream))["duration"] is None
    assert list(islice(bare, 12)) == list(islice(given, 12))


def test_a_file_whose_header_fails_is_noted_when_it_is_due(manifest, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio " * 20)
    (tmp_path / "bad.json").write_text(json.dumps({"audio_filepath": "bad.wav", "id": "bad"}))
    rows = load_speech_dataset([manifest, str(tmp_path / "bad.json")], streaming=True)
    dataset = StreamedBatches(rows, PretrainingDataset(None, on_bad_audio="skip"), list, budget_s=8.0)
    examples = [example for batch in islice(dataset, 8) for example in batch if example.id == "bad"]
    assert examples and all(example.notes[0][1] == "bad" and not len(example.wave) for example in examples)
    dataset = StreamedBatches(rows, PretrainingDataset(None), list, budget_s=8.0)
    with pytest.raises(AudioError, match="recording 'bad': "):
        list(islice(dataset, 8))
