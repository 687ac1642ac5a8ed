"""training/run_grid.py on tones: what is run, what is chosen, what a second call does, refusals in one line."""

import json
import runpy
from pathlib import Path

import pytest
import yaml
from spoken_tones import make_utterances

SCRIPTS = Path(__file__).parents[1] / "training"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return {
        name: make_utterances(folder / name, 4, length=2, seed=seed) for seed, name in enumerate(("train", "test"))
    }


@pytest.fixture
def write(data, tmp_path):
    """Writes a grid of one start, a rate that is chosen, and two seeds, with changes."""
    select = (
        f"{SCRIPTS / 'select_recordings.py'} {data['train']} $output_dir/rows-$seed.parquet --share 0.5 --seed $seed"
    )
    values = {
        "output_dir": str(tmp_path / "out"),
        "needs": [data["train"]],
        "prepare": {"$output_dir/rows-$seed.parquet": select},
        "axes": {
            "start": {"slow": {"warmup_steps": 1}},
            "rate": [1e-3, 0.0],
            "seed": [0, 1],
        },
        "options": {
            "task": "ctc",
            "preset": "tiny",
            "config_overrides": SIZES,
            "train_data": ["$output_dir/rows-$seed.parquet"],
            "eval_data": {"dev": data["test"]},
            "learning_rate": "$rate",
            "seed": "$seed",
            "max_steps": 2,
            "eval_steps": 1,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "probe": False,
        },
        "choose": {"axis": "rate", "at": {"seed": [0]}},
        "metric": "eval_dev_ctc_loss",
        "tests": {"all": data["test"]},
        "tables": [{"title": "tones", "rows": ["start"]}],
    }

    def write(**changes) -> str:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False), encoding="utf-8")
        return str(path)

    write.values = values
    return write


@pytest.fixture
def run(monkeypatch):
    def run(*argv) -> None:
        monkeypatch.setattr("sys.argv", [str(SCRIPTS / "run_grid.py"), *argv])
        runpy.run_path(str(SCRIPTS / "run_grid.py"), run_name="__main__")

    return run


@pytest.fixture
def error_of(run):
    def error_of(path) -> str:
        with pytest.raises(SystemExit) as exit_:
            run(path)
        message = exit_.value.code.lstrip()
        assert message.startswith("error: ") and "\n" not in message
        return message

    return error_of


def one_run(write, **options) -> dict:
    """Changes that leave a single run."""
    options = {**write.values["options"], "learning_rate": 1e-3, "max_steps": 1, **options}
    return {"axes": {"seed": [0]}, "choose": {}, "options": options, "tables": [{"title": "tones"}]}


def test_the_rate_is_chosen_at_one_seed_and_a_second_call_trains_nothing(run, write, tmp_path):
    run(write())
    out = tmp_path / "out"
    assert {folder.name for folder in (out / "runs").iterdir()} == {"slow-0.001-0", "slow-0.0-0", "slow-0.001-1"}
    results = json.loads((out / "results.json").read_text())
    assert [(one["rate"], one["seed"]) for one in results["results"]] == [("0.001", "0"), ("0.001", "1")]
    (choice,) = results["choices"]
    assert choice["start"] == "slow" and choice["rate"]["0.001"] < choice["rate"]["0.0"]
    config = yaml.safe_load((out / "runs" / "slow-0.001-1" / "config_resolved.yaml").read_text())
    assert (config["warmup_steps"], config["learning_rate"], config["seed"]) == (1, 1e-3, 1)
    assert "| slow |" in (out / "results.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".parquet")}
    run(write())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((out / "results.json").read_text()) == results


def test_a_grid_that_was_stopped_ends_as_one_that_was_not(run, write, tmp_path):
    changes = one_run(write) | {"axes": {"seed": [0, 1]}}
    run(write(**changes, output_dir=str(tmp_path / "whole")))
    run(write(**changes | {"axes": {"seed": [1]}}, output_dir=str(tmp_path / "parts")))
    run(write(**changes, output_dir=str(tmp_path / "parts")))
    whole, parts = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts"))
    assert whole == parts


def test_results_of_other_options_or_data_are_not_mixed(error_of, run, write):
    run(write(**one_run(write)))
    assert "max_steps 1 -> 2" in error_of(write(**one_run(write, max_steps=2)))
    (target, command), *_ = write.values["prepare"].items()
    other = {target: command.replace("0.5", "0.75")}
    assert "was made by" in error_of(write(**one_run(write), prepare=other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"needs": ["no/such.parquet"]}, "no/such.parquet does not exist"),
        ({"option": {}}, "unknown key `option`; did you mean `options`?"),
        ({"metric": None}, "`metric` is missing"),
        ({"tables": [{"title": "a", "rows": ["star"]}]}, "unknown key `star`; did you mean `start`?"),
        ({"prepare": {"$output_dir/rows": "$star"}}, "'$star' names no axis"),
        ({"prepare": {"$output_dir/rows": "x.py $seed"}}, "makes"),
        ({"prepare": {"$output_dir/rows": f"{SCRIPTS / 'select_recordings.py'} no/such.json x"}}, "no/such.json"),
        ({"prepare": {}, "options": {"warmup": 1}}, "unknown key `warmup`; did you mean `warmup_steps`?"),
    ],
)
def test_what_cannot_be_is_refused(error_of, write, changes, message):
    assert message in error_of(write(**changes))
