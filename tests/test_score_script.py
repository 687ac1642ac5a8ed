"""score.py: the metrics' figures, whatever the form of the input; systems told apart; one message for bad input."""

import importlib.util
import json
import random
from pathlib import Path

import pytest

from nest_hf.bootstrap import paired_bootstrap
from nest_hf.error_rates import character_errors, mixed_errors
from nest_hf.keyword_errors import keyword_errors
from nest_hf.keywords import Keyword
from nest_hf.scoring import Scorer, rates_by

SCRIPT = Path(__file__).parents[1] / "evaluation" / "score.py"
REFERENCES = {"a": "我要办理业务", "b": "手机号一三八", "c": "贷款利率百分之三点五", "d": "用 iPhone 打"}
GOOD = {"a": "我要办业务", "b": "手机号138", "c": "贷款利率3.5%", "d": "用IPHONE打"}
BAD = {"a": "我要办", "b": "手机号", "c": "利率", "d": "打"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path):
    def run(*argv) -> dict:
        arguments = ["score.py", *map(str, argv), "--output_dir", str(tmp_path / "scores"), "--report", "false"]
        monkeypatch.setattr("sys.argv", arguments)
        script.main()
        return json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def write(tmp_path):
    def write(name: str, texts: dict[str, str], references: dict[str, str] | None = None, **columns) -> Path:
        lines = []
        for index, (key, text) in enumerate(texts.items()):
            line = {"id": key, "text": text, **{column: values[index] for column, values in columns.items()}}
            if references and key in references:
                line["reference"] = references[key]
            lines.append(json.dumps(line, ensure_ascii=False))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_rates_are_those_of_the_metrics(run, write, tmp_path):
    keywords = tmp_path / "keywords.txt"
    keywords.write_text("[service]\n办理\n办理业务\n[money]\n利率\n", encoding="utf-8")
    found = run("--hypotheses", f"x={write('x.jsonl', GOOD)}", "--references", write("r.jsonl", REFERENCES),
                "--keywords", keywords)["systems"]["x"]  # fmt: skip
    assert found["cer"] == character_errors(GOOD, REFERENCES).result()
    assert found["mer"] == mixed_errors(GOOD, REFERENCES).result()
    named = [Keyword("办理", group="service"), Keyword("办理业务", group="service"), Keyword("利率", group="money")]
    assert found["kwer"] == keyword_errors(GOOD, REFERENCES, named).result()
    assert found["wer"] is None
    assert found["cer"]["errors"] == 1 and found["kwer"]["kwer"] == 0.5  # METRICS' rows: one 理, one of two keywords


@pytest.mark.parametrize("level", ["raw", "basic", "zh"])
def test_one_normalisation_for_all_rates_changes_no_rate(level):
    rng = random.Random(0)
    pieces = ["百分之三点五", "一百二十万五千", "<|zh|>", "，", "iPhone", " ", "臺灣", "①", "嗯", "3.5 %", "e\u0301"]
    references = {str(row): "".join(rng.choices(pieces, k=5)) for row in range(200)}
    texts = {key: "".join(rng.choices([text, text[1:], text + "嗯"])) for key, text in references.items()}
    names = ["三点五", "台湾", "iPhone"]
    system = Scorer(references, keywords=map(Keyword, names), level=level)(
        "x", [{"id": key, "text": text} for key, text in texts.items()]
    )
    assert system.cer == character_errors(texts, references, level=level).result()
    assert system.mer == mixed_errors(texts, references, level=level).result()
    expected = keyword_errors(texts, references, names, level=level)
    assert system.kwer == expected.result() and system.keywords.events == expected.events


def test_a_reference_without_hypothesis_is_all_deletions_and_is_listed(run, write, capsys):
    some = {key: GOOD[key] for key in ("a", "b")}
    found = run("--hypotheses", f"x={write('x.jsonl', some)}", "--references", write("r.jsonl", REFERENCES))
    assert found["systems"]["x"]["missing"] == {"count": 2, "ids": ["c", "d"]}
    # 贷款利率3.5% has 8 characters, 用iphone打 as many; 办理 has lost one
    assert found["systems"]["x"]["cer"]["deletions"] == 1 + 8 + 8
    assert "2 references without hypothesis, all deletions: c, d" in capsys.readouterr().out


def test_the_rows_of_a_system_are_in_the_order_of_the_references_and_as_given(run, write, tmp_path):
    path = write("x.jsonl", dict(reversed(GOOD.items())), speaker=list("4321"), channel=["{}"] * 4)
    run("--hypotheses", f"our/system={path}", "--references", write("r.jsonl", REFERENCES))
    lines = (tmp_path / "scores" / "our_system" / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["id"], row["reference"], row["hypothesis"]) for row in rows] == [
        (key, REFERENCES[key], GOOD[key]) for key in REFERENCES
    ]
    assert [row["speaker"] for row in rows] == list("1234") and rows[0]["channel"] == "{}"
    assert [row["errors"] for row in rows] == [1, 0, 0, 0] and rows[0]["num_tokens"] == 6 and rows[0]["audio"] is None


def test_a_manifest_gives_references_and_columns_without_its_audio(run, write, tmp_path):
    lines = [{"audio_filepath": f"{key}.wav", "id": key, "text": text, "duration": 1.5 + row, "speaker": f"s{row % 2}"}
             for row, (key, text) in enumerate(REFERENCES.items())]  # fmt: skip
    lines.append({"audio_filepath": "u.wav", "id": "untold", "duration": 1.0})
    manifest = tmp_path / "test.json"
    manifest.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    found = run("--hypotheses", f"x={write('x.jsonl', {**GOOD, 'untold': 'who knows'})}", "--references", manifest,
                "--by", "speaker", "duration")  # fmt: skip
    assert found["systems"]["x"]["cer"]["num_utterances"] == 4
    assert {label: row["errors"] for label, row in found["by"]["speaker"]["x"].items()} == {"s0": 1, "s1": 0}
    assert {label: row["num_utterances"] for label, row in found["by"]["duration_s"]["x"].items()} == {
        "1 to 2": 1, "2 to 5": 3
    }  # fmt: skip
    row = json.loads((tmp_path / "scores" / "x" / "utterances.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["audio"] == str(tmp_path / "a.wav") and row["duration_s"] == 1.5


def test_parts_of_a_table_are_the_whole(write):
    rng = random.Random(1)
    references = {str(row): "一二三四五"[: rng.randint(1, 5)] for row in range(300)}
    rows = [{"id": key, "text": rng.choice([text, text[:-1], text + "六"]), "snr_db": rng.uniform(-5, 40),
             "rate": rng.random()} for key, text in references.items()]  # fmt: skip
    system = Scorer(references)("x", rows)
    for column in ("snr_db", "rate", "id"):
        table = rates_by(system, column)
        for key in ("errors", "num_tokens", "num_utterances"):
            assert sum(row[key] for row in table.values()) == system.cer[key]
    assert len(rates_by(system, "rate")) == 4  # quarters
    with pytest.raises(ValueError, match="'speakers', which no utterance has; there are .*snr_db"):
        rates_by(system, "speakers")


def test_pairs_of_systems_are_compared_by_paired_bootstrap(run, write, capsys):
    references = {f"{key}{row}": text for row in range(20) for key, text in REFERENCES.items()}
    good = {f"{key}{row}": text for row in range(20) for key, text in GOOD.items()}
    bad = {f"{key}{row}": text for row in range(20) for key, text in BAD.items()}
    files = [f"{name}={write(f'{name}.jsonl', texts, references)}" for name, texts in
             (("good", good), ("bad", bad), ("same", good))]  # fmt: skip
    pairs = {(c["a"], c["b"]): c for c in run("--hypotheses", *files)["comparisons"] if c["rate"] == "cer"}
    counts = [character_errors(texts, references) for texts in (good, bad)]
    expected = paired_bootstrap(counts[0].errors, counts[1].errors, counts[0].num_tokens)
    assert pairs["good", "bad"]["difference"] == expected.difference < 0
    assert pairs["good", "bad"]["p_value"] == expected.p_value < 0.01
    assert pairs["good", "same"]["p_value"] == 1.0 and pairs["good", "same"]["difference"] == 0
    assert "significant" in capsys.readouterr().out


def test_conditions_of_one_output_are_columns_in_the_order_of_the_line(run, write, tmp_path, capsys):
    for name, texts in (("loss", BAD), ("clean_16k", REFERENCES), ("g711", GOOD)):
        write(f"hyp.{name}.jsonl", texts, REFERENCES)
        meta = {"settings": {"condition": name}, "rtfx": 9}
        (tmp_path / f"hyp.{name}.jsonl.meta.json").write_text(json.dumps(meta))
    found = run("--hypotheses", f"ours={tmp_path / 'hyp.jsonl'}")
    assert list(found["systems"]) == ["ours/clean_16k", "ours/g711", "ours/loss"]
    assert found["systems"]["ours/clean_16k"]["cer"]["cer"] == 0
    assert found["systems"]["ours/g711"]["settings"]["condition"] == "g711"
    out = capsys.readouterr().out
    header, line = out[out.index("Conditions") :].splitlines()[1:3]
    assert header.split() == ["system", "clean_16k", "g711", "loss"] and line.split()[1] == "0.00"


def test_both_sides_show_what_is_gained_and_what_is_lost(run, write, capsys):
    target = [write("t1.jsonl", BAD, REFERENCES), write("t2.jsonl", GOOD, REFERENCES)]
    kept = [write("r1.jsonl", GOOD, REFERENCES), write("r2.jsonl", BAD, REFERENCES)]
    argv = ["--hypotheses", f"base={target[0]}", f"tuned={target[1]}"]
    found = run(*argv, "--retention", f"base={kept[0]}", f"tuned={kept[1]}")
    sides = [found["systems"], found["retention"]["systems"]]
    gain, loss = (side["tuned"]["cer"]["cer"] - side["base"]["cer"]["cer"] for side in sides)
    assert gain < 0 < loss
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tuned  ")][-1:]
    assert f"{100 * gain:.2f}" in line and f"{100 * loss:.2f}" in line
    with pytest.raises(ValueError, match="give the same, in the same order"):
        run(*argv, "--retention", f"tuned={kept[0]}")


def test_words_need_a_segmenter_where_there_are_han_characters(run, write):
    english = {"a": "hello world", "b": "good morning"}
    found = run("--hypotheses", f"x={write('x.jsonl', {'a': 'hello word', 'b': 'good morning'}, english)}")
    assert found["systems"]["x"]["wer"]["wer"] == 0.25
    pytest.importorskip("jieba")
    found = run("--hypotheses", f"x={write('x.jsonl', GOOD, REFERENCES)}", "--segmenter", "jieba")
    assert found["systems"]["x"]["wer"]["segmenter"] == "jieba"


def bad_input(write, tmp_path, kind: str) -> list:
    """Arguments with one fault."""
    good, references = write("good.jsonl", GOOD, REFERENCES), write("r.jsonl", REFERENCES)
    path = tmp_path / "odd"
    match kind:
        case "extra":
            return ["--hypotheses", write("x.jsonl", {**GOOD, "z": "谁"}), "--references", references]
        case "empty":
            path.write_bytes(b"")
            return ["--hypotheses", path]
        case "gbk":
            path.write_bytes('{"id": "a", "text": "x"}\n{"id": "b", "text": "办理"}\n'.encode("gbk"))
            return ["--hypotheses", path, "--references", references]
        case "keyword":
            path.write_text("办理\n。！\n", encoding="utf-8")
            return ["--hypotheses", good, "--keywords", path]
        case "no reference":
            return ["--hypotheses", write("x.jsonl", GOOD)]
        case "conflict":
            return ["--hypotheses", good, write("y.jsonl", GOOD, {**REFERENCES, "a": "不同"})]
        case "same name":
            return ["--hypotheses", f"x={good}", f"x={references}"]
        case "same folder":
            return ["--hypotheses", f"stage 1={good}", f"stage_1={references}"]
        case "unfinished":
            (tmp_path / "hyp.jsonl.part0").write_text("")
            return ["--hypotheses", tmp_path / "hyp.jsonl"]
        case "empty references":
            path = path.with_suffix(".jsonl")
            path.write_bytes(b"\n")
            return ["--hypotheses", good, "--references", path]
        case "level":
            return ["--hypotheses", good, "--level", "best"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("extra", "1 of 5 hypotheses have no reference: z; remove"),
        ("empty", "odd is empty"),
        ("gbk", "odd: line 2, byte 22.*GBK; convert the file: iconv"),
        ("keyword", "line 2: '。！' normalises to nothing"),
        ("no reference", "bring no `reference`; give --references"),
        ("conflict", "id 'a' has the reference '我要办理业务' in good and '不同' in y"),
        ("same name", "two hypotheses are called 'x'"),
        ("same folder", "'stage 1' and 'stage_1' would be written to one folder"),
        ("unfinished", "is not finished; run the same transcribe.py once more"),
        ("empty references", "is empty"),
        ("level", "`level` is 'best'; choose one of raw, basic, zh"),
    ],
)
def test_bad_input_gets_one_clear_message_and_no_result(run, write, tmp_path, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        run(*bad_input(write, tmp_path, kind))
    assert "\n" not in str(error.value) and not (tmp_path / "scores").exists()


@pytest.mark.parametrize("audio", [{}, {"audio_filepath": "b.wav", "duration": 1.0}])
def test_a_line_of_the_references_in_gbk_is_named_too(run, write, tmp_path, audio):
    path = tmp_path / "r.json"
    lines = [json.dumps({"id": key, "text": "办理", **audio}, ensure_ascii=False) + "\n" for key in "ab"]
    path.write_bytes(lines[0].encode() + lines[1].encode("gbk"))
    with pytest.raises(ValueError, match="r.json: line 2, byte .*GBK"):
        run("--hypotheses", write("x.jsonl", GOOD), "--references", path)
