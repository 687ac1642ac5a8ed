"""extract_features.py: a batch equals its recordings one by one, whatever the output; bad files are counted."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from recordings import make_recordings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nest_hf import NestConfig, NestFeatureExtractor, NestForPreTraining, NestModel, aggregate_layers
from nest_hf.convert_nemo import to_nemo
from nest_hf.data import feature_files

SCRIPT = Path(__file__).parents[1] / "evaluation" / "extract_features.py"
NUM_BLOCKS, WIDTH = 3, 64


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("extract_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with random weights, as pretrain.py saves it, and six recordings."""
    folder = tmp_path_factory.mktemp("extract")
    torch.manual_seed(0)
    NestForPreTraining(NestConfig.from_preset("tiny")).save_pretrained(folder / "model")
    NestFeatureExtractor().save_pretrained(folder / "model")
    make_recordings(folder / "wavs", number=6, min_s=0.4, max_s=3.0)
    return folder


@pytest.fixture
def run(script, folder, monkeypatch, tmp_path, caplog):
    def run(output: str, *argv: str, config: str = "", model: str = "", data: str = "") -> Path:
        caplog.clear()
        argv = ["--data", data or str(folder / "wavs" / "manifest.jsonl"), *argv]
        argv = ["--model", model or str(folder / "model"), "--output", str(tmp_path / output), *argv]
        monkeypatch.setattr(
            "sys.argv", ["extract_features.py", *([config] if config else []), "--device", "cpu", *argv]
        )
        with caplog.at_level("INFO"):
            script.main()
        return tmp_path / output

    return run


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, torch.Tensor]:
    """id -> all hidden states (L, frames, D) of a recording by itself, without any padding of the batch."""
    model = NestModel.from_pretrained(folder / "model").eval()
    extractor = NestFeatureExtractor.from_pretrained(folder / "model")
    states = {}
    for index in range(6):
        wave, rate = soundfile.read(folder / "wavs" / f"{index}.wav", dtype="float32")
        features = extractor(wave, sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            out = model(**features, output_hidden_states=True)
        frames = -(-(len(wave) // 160) // 8)
        states[f"wavs{index}"] = torch.stack(out.hidden_states)[:, 0, :frames]
        assert torch.equal(states[f"wavs{index}"][-1], out.last_hidden_state[0, :frames])
    return states


def assert_close(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for key, x in found.items():
        assert x.shape == expected[key].shape  # valid frames only
        torch.testing.assert_close(x, expected[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("budget", ["1", "7", "100"])
def test_a_batch_equals_its_recordings_one_by_one(run, alone, budget):
    path = run("all.safetensors", "--layers", "all", "--batch_duration_s", budget)
    expected = {f"{key}/{layer}": x[layer] for key, x in alone.items() for layer in range(NUM_BLOCKS + 1)}
    assert_close(load_file(path), expected)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert (facts["layers"], facts["frame_rate_hz"], facts["dtype"]) == ("0,1,2,3", "12.5", "float32")


@pytest.mark.parametrize(
    ("layers", "expected"), [("last", 3), ("-1", 3), ("3", 3), ("0", 0), ("=-4", 0), ("=-3", 1), ("1", 1)]
)
def test_layers_are_numbered_as_hidden_states(run, alone, layers, expected):
    option = [f"--layers{layers}"] if layers.startswith("=") else ["--layers", layers]
    assert_close(load_file(run("one.safetensors", *option)), {key: x[expected] for key, x in alone.items()})


def test_arguments_may_come_from_a_yaml(run, alone, tmp_path):
    (tmp_path / "config.yaml").write_text("layers: 2,-4\n")
    expected = {f"{key}/{layer}": x[layer] for key, x in alone.items() for layer in (0, 2)}
    assert_close(load_file(run("two.safetensors", config=str(tmp_path / "config.yaml"))), expected)


@pytest.mark.parametrize("mode", ["cat", "sum", "mean", "max", "min", "weighted_sum"])
def test_layers_are_joined(run, alone, mode):
    features = load_file(run("joined.safetensors", "--layers", "2,0,3", "--aggregate", mode))
    assert_close(features, {key: aggregate_layers(x[None, [2, 0, 3]].unbind(1), mode)[0] for key, x in alone.items()})


def test_parquet_holds_the_same_and_is_written_in_pieces(run, alone, monkeypatch):
    monkeypatch.setattr(feature_files, "PIECE_BYTES", 20_000)
    path = run("f.parquet", "--layers", "0,3", "--batch_duration_s", "4")
    table = pq.read_table(path)
    assert table.column_names == ["id", "layer", "frames", "dim", "features"]
    assert table.schema.metadata[b"frame_rate_hz"] == b"12.5"
    assert pq.ParquetFile(path).num_row_groups > 1
    found = {
        f"{row['id']}/{row['layer']}": torch.tensor(row["features"]).view(row["frames"], row["dim"])
        for row in table.to_pylist()
    }
    assert_close(found, {f"{key}/{layer}": x[layer] for key, x in alone.items() for layer in (0, 3)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_what_is_written(run, alone, dtype):
    features = load_file(run("half.safetensors", "--dtype", dtype))
    for key, x in alone.items():
        assert features[key].dtype == getattr(torch, dtype)
        torch.testing.assert_close(features[key].float(), x[3], rtol=2**-7, atol=1e-2)
    if dtype == "float16":
        values = pq.read_table(run("half.parquet", "--dtype", dtype))["features"][0].as_py()
        assert len(values) % WIDTH == 0
    else:
        with pytest.raises(ValueError, match="parquet does not have; choose float16"):
            run("half.parquet", "--dtype", dtype)


def read_folder(path: Path) -> dict[str, torch.Tensor]:
    index = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in index}) == len(index)
    shards = {name: load_file(path / name) for name in {line["file"] for line in index}}
    assert set(shards) == {file.name for file in path.glob("*.safetensors")}
    return {line["id"]: shards[line["file"]][line["id"]] for line in index}


def test_a_folder_is_filled_shard_by_shard_and_gone_on_with_where_it_stopped(
    run, script, alone, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(feature_files, "PIECE_BYTES", 1)  # a shard per recording
    expected = {key: x[3] for key, x in alone.items()}
    extract, calls = script.extract, []

    def killed_at_the_third_batch(*args):
        calls.append(len(args[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return extract(*args)

    monkeypatch.setattr(script, "extract", killed_at_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run("folder", "--batch_duration_s", "1")
    monkeypatch.setattr(script, "extract", extract)
    assert len((tmp_path / "folder" / "index.jsonl").read_text().splitlines()) == 2
    with open(tmp_path / "folder" / "index.jsonl", "a") as index:
        index.write('{"id": "wavs0", "fra')  # killed while it wrote
    path = run("folder", "--batch_duration_s", "1")
    assert "2 recordings are in" in caplog.text
    assert_close(read_folder(path), expected)
    before = {file: file.stat().st_mtime_ns for file in path.glob("*.safetensors")}
    run("folder")  # nothing is left to do
    assert {file: file.stat().st_mtime_ns for file in path.glob("*.safetensors")} == before
    with pytest.raises(ValueError, match="was begun with layers 3; go on with that, or pass --overwrite"):
        run("folder", "--layers", "1")
    monkeypatch.setattr(feature_files, "PIECE_BYTES", 2**20)
    assert_close(read_folder(run("folder", "--layers", "1", "--overwrite")), {key: x[1] for key, x in alone.items()})


def test_bad_recordings_are_counted_by_reason_and_named(run, alone, folder, tmp_path, caplog):
    lines = (folder / "wavs" / "manifest.jsonl").read_text().splitlines()
    records = [
        {**json.loads(line), "audio_filepath": str(folder / "wavs" / f"{i}.wav")} for i, line in enumerate(lines)
    ]
    (tmp_path / "corrupt.wav").write_bytes(b"no audio at all")
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    for name in ("corrupt", "nan", "missing"):
        records.insert(2, {"id": name, "audio_filepath": str(tmp_path / f"{name}.wav"), "duration": 1.0})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match="recording '(corrupt|nan|missing)': .*--on_bad_audio skip"):
        run("bad.safetensors", data=str(data))
    path = run("bad.safetensors", "--on_bad_audio", "skip", "--batch_duration_s", "1", data=str(data))
    assert_close(load_file(path), {key: x[3] for key, x in alone.items()})
    for line in ("unreadable: corrupt", "NaN samples: nan", "missing file: missing"):
        assert f"1 recordings left out, {line}" in caplog.text
    listed = [json.loads(line) for line in (tmp_path / "bad.safetensors.bad_audio.jsonl").read_text().splitlines()]
    assert {line["id"] for line in listed} == {"corrupt", "nan", "missing"}
    assert "x real time" in caplog.text and f"the features are in {path}" in caplog.text
    # the limits of the loader are counted as well
    run("long.safetensors", "--min_duration_s", "1.5", data=str(folder / "wavs" / "manifest.jsonl"))
    assert "shorter than 1.5 s" in caplog.text


def test_a_nemo_archive_gives_the_same_features(run, alone, folder, tmp_path):
    to_nemo(folder / "model", tmp_path / "model.nemo")
    features = load_file(run("nemo.safetensors", model=str(tmp_path / "model.nemo")))
    assert_close(features, {key: x[3] for key, x in alone.items()})


def test_several_sources_and_workers(run, alone, folder):
    both = f"{folder / 'wavs' / 'manifest.jsonl'},{folder / 'wavs'}"
    features = load_file(run("both.safetensors", "--num_workers", "1", data=both))
    expected = {key: x[3] for key, x in alone.items()} | {f"wavs/{i}.wav": alone[f"wavs{i}"][3] for i in range(6)}
    assert_close(features, expected)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--layers", "4"], "`layers` is '4'; give each number once, from 0 to 3"),
        (["--layers", "1,-3"], "give each number once"),
        (["--layers", "first"], "give `all`, `last` or numbers"),
        (["--aggregate", "median"], "`aggregate` is 'median'; choose one of cat, sum"),
        (["--dtype", "int8"], "`dtype` is 'int8'; choose one of float32"),
        (["--on_bad_audio", "ignore"], "`on_bad_audio` is"),
        (["--layer", "1"], "unknown key `layer`; did you mean `layers`"),
    ],
)
def test_wrong_options_are_explained(run, argv, message):
    with pytest.raises(ValueError, match=message):
        run("x.safetensors", *argv)


def test_existing_and_odd_outputs_are_refused(run, folder, tmp_path):
    for name in ("x.safetensors", "x.parquet"):
        run(name)
        with pytest.raises(ValueError, match="exists already; choose another name, or pass --overwrite"):
            run(name)
        run(name, "--overwrite", "true")
        (tmp_path / f"folder.{name[2:]}").mkdir()
        with pytest.raises(ValueError, match="is a folder"):
            run(f"folder.{name[2:]}")
    with pytest.raises(ValueError, match="holds other files; choose a new folder"):
        run(".", "--overwrite", "true")
    assert (tmp_path / "x.parquet").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name x.safetensors"):
        run("file")


def test_a_model_without_all_tensors_is_refused(run, folder, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / "model" / name).read_bytes())
    tensors = load_file(folder / "model" / "model.safetensors")
    del tensors["encoder.layers.1.norm_out.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks tensors of the encoder: .*layers.1.norm_out.weight"):
        run("x.safetensors", model=str(tmp_path))
