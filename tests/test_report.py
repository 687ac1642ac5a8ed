"""Reports: the figures in them are the metrics', data cannot become markup, one file holds everything."""

import base64
import hashlib
import html.parser
import importlib.util
import io
import json
import random
import re
import struct
import urllib.parse
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nest_hf.conditions import condition_channel
from nest_hf.data import TelephoneChannel
from nest_hf.data.audio_encoding import encode_audio
from nest_hf.keywords import Keyword
from nest_hf.recordings import read_recordings
from nest_hf.report import build_report, build_runs_report, read_scores
from nest_hf.report.clips import MAX_CLIP_S, clip_of, link_to, spectrogram_png
from nest_hf.report.columns import described, grouped
from nest_hf.report.page import embedded_json
from nest_hf.report.runs import charts, last_validations, read_runs
from nest_hf.report.scores import edits
from nest_hf.scoring import Scorer, rates_by

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>window.hacked = 1</script></script><!--<img src=x onerror='window.hacked = 1'>&\u2028"
REFERENCES = {"a": "我要办理业务", "b": "手机号一三八", "c": "贷款利率百分之三点五", "d": HOSTILE, HOSTILE: "好的"}
GOOD = {"a": "我要办业务", "b": "手机号138", "c": "贷款利率3.5%", "d": HOSTILE, HOSTILE: "好的办理"}
BAD = {"a": "要半业物", "b": "手机", "c": "利率", "d": "无", HOSTILE: "好"}


def systems(level: str = "zh", **columns) -> list:
    scorer = Scorer(REFERENCES, keywords=[Keyword("办理"), Keyword("利率", group=HOSTILE)], level=level)

    def rows(texts):
        return [
            {"id": key, "text": text, **{name: values[place] for name, values in columns.items()}}
            for place, (key, text) in enumerate(texts.items())
        ]

    return [scorer("good", rows(GOOD)), scorer(HOSTILE, rows(BAD))]


class Elements(html.parser.HTMLParser):
    """Start tags, and the contents of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.contents, self.open = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.contents.append([tag, dict(attributes), ""])
            self.open = self.contents[-1]

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open:
            self.open[2] += data


def read_page(path: Path) -> tuple[Elements, dict]:
    elements = Elements(path.read_text(encoding="utf-8"))
    data = {a["id"]: json.loads(text) for _, a, text in elements.contents if a.get("type") == "application/json"}
    return elements, data


@pytest.fixture
def recordings(tmp_path):
    def recordings(*seconds: float) -> list[str]:
        paths = []
        for number, length in enumerate(seconds):
            path = tmp_path / "audio #1" / f"{number} ?.flac"
            path.parent.mkdir(exist_ok=True)
            wave = np.sin(np.arange(round(16000 * length)) / (2 + number), dtype=np.float32) / 2
            path.write_bytes(encode_audio(wave, 16000))
            paths.append(str(path))
        return paths

    return recordings


def test_text_of_the_data_never_becomes_markup(tmp_path):
    page = build_report(systems(speaker=[HOSTILE] * 5), tmp_path / "r.html", title=HOSTILE)
    elements, data = read_page(page)
    assert [tag for tag, _ in elements.tags if tag not in ("html", "head", "meta", "title", "style", "body")] == [
        "noscript", "script", "script",
    ]  # fmt: skip
    assert data["data"]["title"] == HOSTILE and data["data"]["utterances"]["raw"][3] == HOSTILE


def test_only_the_pages_own_script_and_style_are_admitted(tmp_path):
    elements, _ = read_page(build_report(systems(), tmp_path / "r.html"))
    (policy,) = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    code = [text for tag, a, text in elements.contents if a.get("type") != "application/json"]
    assert len(code) == 2
    for text in code:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_nothing_is_loaded_from_elsewhere_and_no_text_is_parsed_as_html(tmp_path):
    assets = ROOT / "nest_hf" / "report" / "assets"
    for path in assets.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        for word in (
            "http",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "@import",
            "fetch(",
        ):
            assert word not in text, (path.name, word)
    elements, _ = read_page(build_report(systems(), tmp_path / "r.html"))
    assert not any(name in attributes for _, attributes in elements.tags for name in ("src", "href", "srcset"))


@pytest.mark.parametrize(
    "value, read",
    [
        (HOSTILE, HOSTILE),
        ({HOSTILE: [None, True, 1.5]}, {HOSTILE: [None, True, 1.5]}),
        ({"\u2029": [float("nan"), float("inf"), "\ud800"]}, {"\u2029": [None, None, "\ud800"]}),
    ],
)
def test_embedded_json_is_json_without_a_sign_that_html_knows(value, read):
    text = embedded_json(value)
    assert not set(text) & set("<>&\u2028\u2029") and text.encode("utf-8")
    assert json.loads(text) == read


def test_the_same_scores_give_the_same_bytes_from_memory_and_from_the_folder(tmp_path, monkeypatch, recordings):
    paths = dict(zip("abc", recordings(1, 2, 1), strict=True))
    lines = [{"id": k, "text": GOOD[k], "reference": REFERENCES[k], "audio": path} for k, path in paths.items()]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "keywords.txt").write_text("办理\n利率\t年利率\n", encoding="utf-8")
    run("score", monkeypatch, "--hypotheses", f"good={tmp_path / 'good.jsonl'}", "--output_dir", tmp_path / "scores",
        "--keywords", tmp_path / "keywords.txt")  # fmt: skip
    run("report", monkeypatch, "--scores", tmp_path / "scores", "--output", tmp_path / "scores" / "again.html")
    written = (tmp_path / "scores" / "report.html").read_bytes()
    assert written == (tmp_path / "scores" / "again.html").read_bytes() and b'"clip-0-0"' in written


@pytest.mark.parametrize("level", ["raw", "basic", "zh"])
def test_alignments_hold_the_errors_of_the_metric(tmp_path, level):
    both = systems(level)
    _, data = read_page(build_report(both, tmp_path / "r.html"))
    for system, shown in zip(both, data["data"]["hypotheses"], strict=True):
        for place, row in enumerate(system.rows):
            runs = re.findall(r"(\d+)([=SDI])", shown["edits"][place])
            counts = {kind: sum(int(n) for n, own in runs if own == kind) for kind in "=SDI"}
            assert counts["S"] + counts["D"] + counts["I"] == row["errors"]
            assert counts["="] + counts["S"] + counts["D"] == row["num_tokens"]


def test_edits_turn_the_reference_into_the_hypothesis():
    rng = random.Random(0)
    for _ in range(300):
        reference, hypothesis = ("".join(rng.choices("abc𠀀", k=rng.randrange(9))) for _ in range(2))
        i, j = 0, 0
        for length, kind in re.findall(r"(\d+)([=SDI])", edits(reference, hypothesis)):
            i, j = i + int(length) * (kind != "I"), j + int(length) * (kind != "D")
            if kind == "=":
                assert reference[i - int(length) : i] == hypothesis[j - int(length) : j]
        assert (i, j) == (len(reference), len(hypothesis))


def test_keywords_open_the_utterances_that_the_table_counts(tmp_path):
    _, data = read_page(build_report(systems(), tmp_path / "r.html"))
    for shown, summary in zip(data["data"]["hypotheses"], data["data"]["systems"], strict=True):
        events = [(kind, keyword) for row in shown["keywords"] for kind, keyword, _, _ in row]
        for row in summary["keywords"]:
            assert events.count(("miss", row["keyword"])) == row["misses"]
            assert events.count(("false_alarm", row["keyword"])) == row["false_alarms"]
            assert events.count(("correct", row["keyword"])) == row["num_keywords"] - row["misses"]
    assert [["false_alarm", "办理", 2, 4]] == data["data"]["hypotheses"][0]["keywords"][4]


def test_rates_by_column_are_those_of_score():
    rng = random.Random(0)
    references = {str(number): "".join(rng.choices("一二三四人口", k=rng.randrange(1, 9))) for number in range(200)}
    rows = [
        {"id": k, "text": t[1:] if rng.random() < 0.5 else t, "snr_db": float(rng.randrange(-3, 30))}
        for k, t in references.items()
    ]
    system = Scorer(references, level="basic")("x", rows)
    (column,) = [
        c for c in grouped({"x": system.rows}, {"x": list(map(described, system.rows))}) if c["name"] == "snr_db"
    ]
    expected = rates_by(system, "snr_db")
    assert column["labels"] == list(expected)
    for label, found in zip(column["labels"], column["rates"]["x"], strict=True):
        row = expected[label]
        assert (found["cer"], found["errors"], found["tokens"]) == (row["cer"], row["errors"], row["num_tokens"])
        assert [found["low"], found["high"]] == row["cer_interval"] and found["utterances"] == row["num_utterances"]


def test_every_row_has_the_group_of_its_own_value_and_a_system_its_own_channel():
    facts = {"x": [{"codec": "a"}, {"codec": "b"}, {}, {"codec": "b"}], "y": [{"codec": "c"}, {}, {"codec": "a"}, {}]}
    rows = [{"errors": place, "num_tokens": 4} for place in range(4)]
    (column,) = grouped({"x": rows, "y": rows}, facts)
    for system, of in column["of"].items():
        assert [None if place < 0 else column["labels"][place] for place in of] == [
            f.get("codec") for f in facts[system]
        ]
    place = column["labels"].index("b")
    assert column["rates"]["x"][place]["errors"] == 4 and column["rates"]["y"][place]["cer"] is None


def test_a_column_of_many_speakers_keeps_those_with_most_utterances():
    facts = {"x": [{"speaker": f"s{number}"} for number in range(500)] + [{"speaker": "s499"}] * 5}
    (column,) = grouped({"x": [{"errors": 1, "num_tokens": 2}] * 505}, facts)
    assert len(column["labels"]) == 201 and column["labels"][0] == "s499" and column["labels"][-1] == "all others"
    assert sum(rate["utterances"] for rate in column["rates"]["x"]) == 505


def test_what_the_telephone_channel_drew_becomes_columns():
    channel = TelephoneChannel(
        [{"resample": {"rate": 8000}}, {"codec": {}}, {"packet_loss": {}}, {"resample": {"rate": "input"}}]
    )
    draw = channel.draw(16000, sampling_rate=16000, id="a")
    facts = described({"channel": draw.to_json(), "num_tokens": 3, "duration_s": 1.5})
    drawn = {step["step"]: step for step in draw.steps}
    assert facts["codec"] == drawn["codec"]["name"]
    assert facts["lost_percent"] == pytest.approx(100 * drawn["packet_loss"]["rate"])
    assert facts["speaking_rate"] == 2.0


@pytest.mark.parametrize("channel", ["", "{", "[]", "null", '{"steps": 3}', '{"steps": [{}]}', None, 7])
def test_a_channel_that_is_none_is_no_channel(channel):
    assert described({"channel": channel, "num_tokens": 1, "duration_s": 0}) == {"duration_s": 0}


def test_an_embedded_recording_has_the_samples_of_its_file(recordings):
    (path,) = recordings(1.5)
    clip = clip_of({"audio": path, "duration_s": 1.5}, embed=True)
    found, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["flac"])), dtype="int16")
    assert rate == 16000 and np.array_equal(found, soundfile.read(path, dtype="int16")[0])
    piece = clip_of({"audio": path, "duration_s": 0.25, "offset_s": 0.5}, embed=True)
    assert np.array_equal(
        soundfile.read(io.BytesIO(base64.b64decode(piece["flac"])), dtype="int16")[0], found[8000:12000]
    )
    assert "flac" not in clip_of({"audio": path}, embed=False)


def test_a_long_recording_is_cut_and_says_so(recordings):
    (path,) = recordings(MAX_CLIP_S + 5)
    clip = clip_of({"audio": path, "duration_s": MAX_CLIP_S + 5}, embed=True)
    assert clip["shown_s"] == MAX_CLIP_S and clip["duration_s"] == MAX_CLIP_S + 5


@pytest.mark.parametrize("hertz", [500, 1000, 3000, 7000])
def test_a_tone_is_a_bright_line_at_its_frequency(hertz):
    wave = np.sin(2 * np.pi * hertz * np.arange(16000) / 16000).astype(np.float32)
    image = pixels(spectrogram_png(wave, 16000))
    height, width = image.shape
    brightest = image[:, 5:-5].argmax(axis=0)
    assert np.all(np.abs((height - 0.5 - brightest) / height * 8000 - hertz) < 130)
    assert image.max() == 15 and np.median(image) == 0 and 150 < width <= 1000


@pytest.mark.parametrize("samples", [1, 100, 16000 * 70])
def test_a_spectrogram_of_any_length_and_of_silence_can_be_drawn(samples):
    image = pixels(spectrogram_png(np.zeros(samples, np.float32), 16000))
    assert image.shape[1] <= 1000 and not image.any()


def test_a_link_leads_to_the_recording_wherever_the_folder_is_moved(tmp_path, recordings):
    (path,) = recordings(1)
    page = tmp_path / "reports" / "r.html"
    link = link_to({"audio": path, "offset_s": 0.5, "duration_s": 0.25}, page)
    address, _, piece = link.partition("#")
    assert (page.parent / urllib.parse.unquote(address)).resolve() == Path(path).resolve()
    assert piece == "t=0.5,0.75" and "?" not in address and " " not in address


def test_the_recordings_with_most_errors_are_embedded(tmp_path, recordings):
    both = systems(audio=recordings(1, 1, 1, 1, 1), duration_s=[1.0] * 5)
    total = [sum(system.rows[place]["errors"] for system in both) for place in range(5)]
    _, data = read_page(build_report(both, tmp_path / "r.html", num_audio=2))
    worst = sorted(range(5), key=lambda place: -total[place])[:2]
    assert data["data"]["clips"] == worst and set(data) == {"data", *(f"clip-{place}-0" for place in worst)}
    assert all("flac" in data[f"clip-{place}-0"] for place in worst)
    _, data = read_page(build_report(both, tmp_path / "r.html", num_audio=2, audio="link"))
    assert len(data["data"]["utterances"]["link"]) == 5 and "flac" not in data[f"clip-{worst[0]}-0"]
    _, data = read_page(build_report(both, tmp_path / "r.html", audio="none"))
    assert set(data) == {"data"} and data["data"]["utterances"]["link"] is None


def test_a_system_is_shown_with_what_it_heard_under_its_condition(tmp_path, recordings):
    paths = recordings(1, 2, 1.5)
    source = tmp_path / "data.jsonl"
    lines = [{"audio_filepath": path, "id": key, "text": "好"} for key, path in zip("abc", paths, strict=True)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scorer = Scorer(dict.fromkeys("abc", "好的"))
    both, heard = [], {}
    for name in ("clean_16k", "babble"):
        channel = condition_channel(name, read_recordings([str(source)]).rows, seed=3)
        rows = []
        for key, path in zip("abc", paths, strict=True):
            wave = soundfile.read(path, dtype="float32")[0]
            rows.append({"id": key, "text": "好", "audio": path, "duration_s": len(wave) / 16000})
            if channel is not None:
                wave, draw = channel(wave, sampling_rate=16000, seed=3, id=key)
                rows[-1]["channel"] = draw.to_json()
            heard[name, key] = wave
        settings = {"condition": name, "seed": 3, "data": [str(source)]}
        both.append(scorer(name, rows, settings=settings))
    _, data = read_page(build_report(both, tmp_path / "r.html"))
    for system, shown in zip(both, data["data"]["heard"], strict=True):
        for place, key in enumerate("abc"):
            clip = data[f"clip-{place}-{shown['clip']}"]
            found = soundfile.read(io.BytesIO(base64.b64decode(clip["flac"])), dtype="float32")[0]
            assert np.array_equal(found, heard[system.name, key]), (system.name, key)
    assert not np.array_equal(heard["clean_16k", "a"], heard["babble", "a"])
    _, data = read_page(build_report(both, tmp_path / "r.html", audio="link"))
    assert data["data"]["heard"][0]["note"] is None and "before the channel" in data["data"]["heard"][1]["note"]
    source.unlink()
    _, data = read_page(build_report(both, tmp_path / "r.html"))
    assert "cannot be heard" in data["data"]["heard"][1]["note"] and "flac" in data["clip-0-1"]


def test_a_recording_that_is_gone_is_named_where_it_would_be(tmp_path):
    both = systems(audio=[str(tmp_path / "gone.flac")] * 5)
    _, data = read_page(build_report(both, tmp_path / "r.html", num_audio=1))
    (problem,) = [block["problem"] for name, block in data.items() if name != "data"]
    assert "gone.flac" in problem


# training runs


def write_run(folder: Path, history: list[dict], results: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    if results:
        (folder / "eval_results.json").write_text(json.dumps(results))
    return folder


HISTORY = [
    {"step": 10, "epoch": 0.5, "loss": 3.0, "learning_rate": 1e-3, "grad_norm": float("nan"), "accuracy": 0.1},
    {"step": 10, "epoch": 0.5, "eval_dev_set_loss": 2.5, "eval_dev_set_unigram_entropy": 2.75, "eval_runtime": 3.0,
     "eval_dev_set_accuracy": 0.25, "eval_dev_set_constant_accuracy": 0.125, "eval_dev_set_codebook_coverage": 1.0},
    {"step": 10, "epoch": 0.5, "eval_calls_clean_cer": 0.5, "eval_calls_clean_ctc_cer": 0.75},
    {"step": 20, "epoch": 1.0, "loss": 2.0, "learning_rate": 5e-4},
    {"step": 20, "epoch": 1.0, "train_loss": 2.5, "train_runtime": 9.0},
]  # fmt: skip


def test_curves_hold_what_trainer_logged(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "x", HISTORY)])
    found = {chart["metric"]: {one["name"]: one["points"] for one in chart["series"]} for chart in charts([run])}
    assert found["loss"] == {
        "x, training": [(10, 0.5, 3.0), (20, 1.0, 2.0)],
        "x, dev_set": [(10, 0.5, 2.5)],
        "x, dev_set, unigram entropy": [(10, 0.5, 2.75)],
    }
    assert found["learning_rate"] == {"x": [(10, 0.5, 1e-3), (20, 1.0, 5e-4)]}
    assert found["cer"] == {"x, calls_clean": [(10, 0.5, 50.0)]}
    assert found["ctc_cer"] == {"x, calls_clean": [(10, 0.5, 75.0)]}
    assert found["accuracy"]["x, dev_set, constant accuracy"] == [(10, 0.5, 12.5)]


def test_the_last_validation_is_that_of_the_results_file(tmp_path):
    results = {
        "eval_dev_loss": 1.0,
        "eval_dev_unigram_entropy": 3.0,
        "eval_dev_accuracy": 0.5,
        "eval_dev_constant_accuracy": 0.25,
    }
    with_results = write_run(tmp_path / "a", HISTORY, results)
    without = write_run(tmp_path / "b", HISTORY)
    header, rows = last_validations(read_runs([with_results, without]))
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["run"], row["validated on"]) for row in table] == [
        ("a", "dev"),
        ("b", "dev_set"),
        ("b", "calls_clean"),
    ]
    assert table[0]["entropy - loss"] == 2.0 and table[0]["accuracy / constant"] == 2.0
    assert table[1]["entropy - loss"] == 0.25 and table[2]["CER, %"] == 50.0 and table[2]["entropy - loss"] is None


def test_stages_and_a_run_that_goes_on_are_found(tmp_path):
    write_run(tmp_path / "stages" / "0_encoder", HISTORY)
    write_run(tmp_path / "stages" / "1_joint" / "checkpoint-5", HISTORY[:1])
    write_run(tmp_path / "stages" / "1_joint" / "checkpoint-20", HISTORY)
    first, second = read_runs([tmp_path / "stages"])
    assert (first.name, first.is_finished) == ("stages/0_encoder", True)
    assert (second.name, second.is_finished, len(second.training)) == ("stages/1_joint", False, 2)
    write_run(tmp_path / "other" / "stages" / "0_encoder", HISTORY)
    names = [run.name for run in read_runs([tmp_path / "stages", tmp_path / "other" / "stages"])]
    assert len(set(names)) == 3


def test_a_report_of_runs_survives_nan_and_hostile_names(tmp_path):
    folder = write_run(tmp_path / "<b>x", [*HISTORY, {"step": 30, "loss": float("nan"), "eval_<script>_cer": 0.1}])
    elements, data = read_page(build_runs_report([folder], tmp_path / "runs.html", title=HOSTILE))
    assert sum(tag == "script" for tag, _ in elements.tags) == 2
    assert data["data"]["charts"][0]["series"][0]["name"].startswith("<b>x")


# one message for bad input


def run(script: str, monkeypatch, *argv):
    spec = importlib.util.spec_from_file_location(script, ROOT / "evaluation" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [f"{script}.py", *map(str, argv)])
    module.main()


def test_bad_input_has_one_message(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="either --scores DIR or --runs"):
        run("report", monkeypatch, "--output", "r.html")
    with pytest.raises(ValueError, match="`output` is missing"):
        run("report", monkeypatch, "--scores", tmp_path)
    with pytest.raises(ValueError, match="`num_audio` has no effect"):
        run("report", monkeypatch, "--runs", tmp_path, "--output", "r.html", "--num_audio", 3)
    with pytest.raises(ValueError, match="no metrics.json"):
        run("report", monkeypatch, "--scores", tmp_path, "--output", "r.html")
    with pytest.raises(ValueError, match="no trainer_state.json"):
        run("report", monkeypatch, "--runs", tmp_path, "--output", "r.html")
    with pytest.raises(ValueError, match="`audio` is 'all'; choose one of embed, link, none"):
        build_report(systems(), tmp_path / "r.html", audio="all")
    with pytest.raises(ValueError, match="`num_audio` is -1"):
        build_report(systems(), tmp_path / "r.html", num_audio=-1)
    other = Scorer({"z": "好"})("other", [])
    with pytest.raises(ValueError, match="other has other utterances than good"):
        build_report([*systems(), other], tmp_path / "r.html")


def test_scores_that_are_cut_off_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"id": k, "text": k, "reference": k}) + "\n" for k in "abc"))
    run(
        "score",
        monkeypatch,
        "--hypotheses",
        f"x={tmp_path / 'x.jsonl'}",
        "--output_dir",
        tmp_path / "s",
        "--report",
        "false",
    )
    rows = tmp_path / "s" / "x" / "utterances.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    for text, message in (
        ("".join(lines[:2]), "has 2 lines for 3 utterances"),
        ("".join(lines[:2]) + lines[2][:9], "line 3 is no JSON"),
    ):
        rows.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_scores(tmp_path / "s")
    rows.unlink()
    with pytest.raises(ValueError, match="does not exist; run score.py again"):
        read_scores(tmp_path / "s")


def pixels(png: bytes) -> np.ndarray:
    """Values of a PNG of 4-bit greys, (height, width)."""
    width, height = struct.unpack(">II", png[16:24])
    chunks, place = {}, 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + content)
        chunks[kind], place = content, place + 12 + length
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + -(-width // 2))[:, 1:]
    return np.stack([lines >> 4, lines & 15], axis=2).reshape(height, -1)[:, :width]
