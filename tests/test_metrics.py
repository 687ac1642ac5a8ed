"""CER, MER, WER and KWER: the published tables, public libraries' figures, and one message for each bad input."""

import importlib.util
import json
import random
import re
from pathlib import Path

import evaluate
import jiwer
import numpy as np
import pytest

from nest_hf import metrics
from nest_hf.bootstrap import paired_bootstrap
from nest_hf.error_rates import character_errors, mixed_tokens, word_errors
from nest_hf.keyword_errors import keyword_errors
from nest_hf.keywords import Keyword
from nest_hf.metrics import CharacterErrorRate, KeywordErrorRate, MixedErrorRate, WordErrorRate

ROOT = Path(__file__).parents[1]


def random_pairs(number: int, seed: int, alphabet: str = "我要办理业务 abc") -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    references = ["好" + "".join(rng.choices(alphabet, k=rng.randrange(15))) for _ in range(number)]
    predictions = ["".join(c for c in text for c in rng.choice((c, c, c, "", "务", c + "办"))) for text in references]
    return predictions, references


@pytest.mark.parametrize(
    ("reference", "hypothesis", "keywords", "expected"),
    [
        ("我要办理业务", "我要办业务", ["办理", "办理业务"], (1, 1, 0, 1.0)),
        ("好的", "好的办理", ["办理"], (0, 0, 1, None)),
        ("办理", "办办理", ["办理"], (1, 0, 0, 0.0)),
        ("贷款利率百分之三点五", "贷款利率3.5%", ["利率"], (1, 0, 0, 0.0)),
    ],
)
def test_kwer_of_the_definition(reference, hypothesis, keywords, expected):
    result = KeywordErrorRate(keywords=keywords).compute(predictions=[hypothesis], references=[reference])
    assert tuple(result[key] for key in ("num_keywords", "misses", "false_alarms", "kwer")) == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis", "level", "expected"),
    [
        ("我要办理业务", "我要办业务", "zh", 1 / 6),
        ("好的", "好的办理", "zh", 1.0),
        ("办理", "办办理", "zh", 0.5),
        ("手机号一三八", "手机号138", "zh", 0.0),
        ("手机号一三八", "手机号138", "basic", 0.5),
        ("贷款利率百分之三点五", "贷款利率3.5%", "zh", 0.0),
    ],
)
def test_cer_of_the_definition(reference, hypothesis, level, expected):
    result = CharacterErrorRate(level=level).compute(predictions=[hypothesis], references=[reference])
    assert (result["cer"], result["level"]) == (pytest.approx(expected), level)


def test_mer_of_the_definition():
    result = MixedErrorRate().compute(predictions=["用IPHONE打"], references=["用 iPhone 打"])
    assert (result["mer"], result["num_tokens"]) == (0.0, 3)


def test_cer_equals_that_of_jiwer_without_spaces():
    predictions, references = random_pairs(1000, seed=0)
    result = character_errors(predictions, references, level="raw").result()
    joined = [["".join(text.split()) for text in texts] for texts in (references, predictions)]
    assert result["cer"] == pytest.approx(jiwer.cer(*joined), abs=1e-12)
    each = [jiwer.cer(reference, prediction) for reference, prediction in zip(*joined, strict=True)]
    assert result["cer_macro"] == pytest.approx(np.mean(each), abs=1e-12)


def test_wer_equals_that_of_jiwer():
    predictions, references = random_pairs(300, seed=1, alphabet="abc   ")
    references = [text.replace("好", "ok ") for text in references]
    predictions = [text.replace("好", "ok ").replace("务", "x").replace("办", "y") for text in predictions]
    assert word_errors(predictions, references).result()["wer"] == pytest.approx(jiwer.wer(references, predictions))


def test_mixed_tokens_are_characters_of_han_and_kana_and_runs_of_the_rest():
    assert mixed_tokens("二〇々ひカー") == list("二〇々ひカー")
    assert mixed_tokens("用iphone14打 don't 3.5%好 a.b") == ["用", "iphone14", "打", "don't", "3.5%", "好", "a", "b"]


def test_han_text_is_refused_without_a_segmenter():
    message = "utterance 'b': '贷款' holds Han characters, which no spaces separate; pass segmenter='jieba'"
    with pytest.raises(ValueError, match=re.escape(message)):
        word_errors({"a": "loan", "b": "loan"}, {"a": "loan", "b": "贷款"})
    with pytest.raises(ValueError, match="holds Han characters"):
        WordErrorRate().compute(predictions=["贷款"], references=["loan"])


def test_a_segmenter_finds_chinese_words():
    by_pairs = word_errors(["我要办理"], ["我要办理业务"], segmenter=lambda text: re.findall("..?", text)).result()
    assert (by_pairs["wer"], by_pairs["num_tokens"]) == (pytest.approx(1 / 3), 3)
    pytest.importorskip("jieba")
    result = WordErrorRate(segmenter="jieba").compute(predictions=["我来到清华大学"], references=["我来到北京大学"])
    assert (result["num_tokens"], result["substitutions"], result["segmenter"]) == (3, 1, "jieba")


def test_an_empty_reference_adds_to_the_numerator_alone():
    counts = character_errors(["好", "好的呢"], ["", "好的"])
    assert counts.result()["cer"] == pytest.approx(2 / 2)
    assert counts.result()["cer_macro"] == pytest.approx(1 / 2)
    nothing = character_errors(["好"], [""]).result()
    assert (nothing["cer"], nothing["cer_macro"], nothing["cer_interval"]) == (None, None, None)
    assert nothing["insertions"] == 1


@pytest.mark.parametrize("metric", [CharacterErrorRate(), KeywordErrorRate(keywords=["办理"])])
def test_an_empty_corpus_gives_none(metric):
    result = metric.compute(predictions=[], references=[])
    assert result.get("cer") is None and result.get("kwer") is None and result["num_utterances"] == 0


def test_by_id_a_missing_hypothesis_counts_as_deletions():
    references = {"a": "办理", "b": "我要办理"}
    for result in (
        character_errors({"b": "我要办理"}, references).result(),
        CharacterErrorRate().compute(predictions={"b": "我要办理"}, references=references),
    ):
        assert (result["deletions"], result["cer"], result["num_missing"]) == (2, pytest.approx(2 / 6), 1)
    assert keyword_errors({"b": "我要办理"}, references, ["办理"]).result()["misses"] == 1


def test_by_id_the_order_does_not_matter():
    predictions, references = random_pairs(50, seed=2)
    by_id = {number: text for number, text in enumerate(predictions)}
    backwards = dict(sorted(by_id.items(), reverse=True))
    named = character_errors(backwards, dict(enumerate(references)))
    assert np.array_equal(named.errors, character_errors(predictions, references).errors)


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        (["好"], ["好", "的"], {}, "`predictions` has 1 texts but `references` has 2"),
        ({"a": "好", "c": "", "d": ""}, {"a": "好"}, {}, "`predictions`: 'c' and 1 more have no reference"),
        ({"a": "好"}, ["好"], {}, "must both be texts by id"),
        ([None], ["好"], {}, "`predictions`: 0 is None (NoneType)"),
        ({"a": "好"}, {"a": 3}, {}, "`references`: 'a' is 3 (int)"),
        ("好", ["好"], {}, "`predictions` is '好'; pass a list"),
        (None, ["好"], {}, "`predictions` is None; pass a list"),
        (["好"], ["好"], {"ids": ["a", "b"]}, "`ids` has 2 entries for 1 texts"),
        (["好", "好"], ["好", "好"], {"ids": ["a", "a"]}, "`ids` holds 'a' twice"),
        (["好"], ["好"], {"level": "simplified"}, "`level` is 'simplified'"),
    ],
)
def test_bad_input_is_named(predictions, references, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        character_errors(predictions, references, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CharacterErrorRate(level="chinese"), "`level` is 'chinese'"),
        (lambda: CharacterErrorRate(remove_filler=True), "`remove_filler` is no option of CharacterErrorRate"),
        (lambda: WordErrorRate(segmenter="pkuseg"), "`segmenter` is 'pkuseg'"),
        (lambda: KeywordErrorRate(keywords=["。"]), "'。', which normalises to nothing"),
        (lambda: KeywordErrorRate(keywords=["办理"], mode="exact"), "`mode` is 'exact'"),
        (lambda: KeywordErrorRate(keywords="none.txt"), "'none.txt', which is no file"),
        (lambda: CharacterErrorRate().compute(predictions=["\ud800"], references=["好"]), "UTF-8 cannot store"),
        (lambda: CharacterErrorRate().compute(predictions=["好"]), "`references` is None"),
    ],
)
def test_a_metric_names_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_and_single_texts_score_as_the_whole_does(in_memory):
    predictions, references = random_pairs(60, seed=3)
    options = {"keep_in_memory": in_memory}
    for metric in (CharacterErrorRate(**options), KeywordErrorRate(keywords=["办理", "业务"], **options)):
        whole = metric.compute(predictions=predictions, references=references)
        metric.add_batch(predictions=predictions[:20], references=references[:20])
        for prediction, reference in zip(predictions[20:40], references[20:40], strict=True):
            metric.add(prediction=prediction, reference=reference)
        assert metric.compute(predictions=predictions[40:], references=references[40:]) == whole


def test_combined_metrics_share_their_texts():
    combined = evaluate.combine([CharacterErrorRate(), MixedErrorRate()])
    result = combined.compute(predictions=["用iphone打"], references=["用 iPhone 打"])
    assert (result["cer"], result["mer"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "result",
    [
        character_errors(["好"], ["好的"], level="basic", remove_fillers=True).result(),
        keyword_errors(["好"], ["好的"], ["好的"], level="basic", remove_fillers=True).result(),
    ],
)
def test_every_result_is_json_and_names_its_normaliser(result):
    result = json.loads(json.dumps(result))
    assert (result["level"], result["remove_fillers"], result["fold_erhua"]) == ("basic", True, False)


def test_intervals_hold_the_rate_and_depend_on_the_seed_alone():
    predictions, references = random_pairs(200, seed=4)
    counts = character_errors(predictions, references)
    low, high = counts.result()["cer_interval"]
    assert low < counts.result()["cer"] < high
    assert counts.result(seed=1) == counts.result(seed=1) != counts.result(seed=2)


def test_two_systems_are_compared_by_their_counts():
    predictions, references = random_pairs(300, seed=5)
    counts, perfect = character_errors(predictions, references), character_errors(references, references)
    comparison = paired_bootstrap(perfect.errors, counts.errors, counts.num_tokens)
    assert comparison.difference == pytest.approx(-counts.result()["cer"]) and comparison.p_value < 0.01


def test_a_false_alarm_is_a_keyword_heard_where_none_is_kept():
    counts = keyword_errors(["办理利率利率"], ["办理利率申请"], ["办理", "利率", "申请"])
    result = counts.result()
    assert (result["misses"], result["false_alarms"], result["kwer"]) == (1, 1, pytest.approx(2 / 3))
    assert [(event.kind, event.span.keyword, event.span.start) for event in counts.events] == [
        ("correct", "办理", 0),
        ("correct", "利率", 2),
        ("miss", "申请", 4),
        ("false_alarm", "利率", 4),
    ]


def test_a_longer_keyword_heard_around_a_kept_one_is_a_false_alarm():
    result = keyword_errors(["办理业务"], ["办理"], ["办理", "办理业务"]).result()
    assert (result["num_keywords"], result["misses"], result["false_alarms"]) == (1, 0, 1)
    assert result["by_keyword"]["办理业务"]["false_alarms"] == 1


def test_an_alias_counts_as_its_keyword():
    keywords = [Keyword("信用卡", ("贷记卡",)), "办理"]
    counts = keyword_errors(["我办理贷记卡"], ["我要办理信用卡"], keywords)
    assert (counts.result()["misses"], counts.result()["false_alarms"]) == (0, 0)
    assert [(event.kind, *event.span[:2]) for event in counts.events] == [("correct", 2, 4), ("correct", 4, 7)]


@pytest.mark.parametrize("seed", [0, 1])
def test_modes_agree_with_a_plain_count(seed):
    predictions, references = random_pairs(200, seed=seed, alphabet="办理业务")
    keywords = ["办理", "业务", "理"]
    misses = false_alarms = total = legacy = 0
    for prediction, reference in zip(predictions, references, strict=True):
        said, heard = (
            [re.findall("办理|业务|理", text).count(k) for k in keywords] for text in (reference, prediction)
        )
        fewer = [max(0, s - h) for s, h in zip(said, heard, strict=True)]
        misses, total = misses + sum(fewer), total + sum(said)
        false_alarms += sum(max(0, h - s) for s, h in zip(said, heard, strict=True))
        legacy += sum(fewer) / sum(said) if sum(said) else 0
    result = keyword_errors(predictions, references, keywords, mode="count").result()
    assert (result["misses"], result["false_alarms"], result["num_keywords"]) == (misses, false_alarms, total)
    assert result["kwer"] == pytest.approx((misses + false_alarms) / total)
    kwer = keyword_errors(predictions, references, keywords, mode="legacy").result()["kwer"]
    assert kwer == pytest.approx(legacy / len(references))


def test_tables_add_up():
    predictions, references = random_pairs(300, seed=6)
    keywords = [Keyword("办理", group="actions"), Keyword("要办", group="actions"), Keyword("业务"), Keyword("没有")]
    counts = keyword_errors(predictions, references, keywords)
    result = counts.result()
    rows = result["by_keyword"].values()
    assert list(result["by_group"]) == ["actions", "ungrouped"]
    for key in ("num_keywords", "num_hypothesis_keywords", "misses", "false_alarms"):
        assert sum(row[key] for row in rows) == result[key]
        assert sum(row[key] for row in result["by_group"].values()) == result[key]
    assert result["num_keywords"] == counts.num_keywords.sum() and result["misses"] == counts.misses.sum()
    assert result["false_alarms"] == counts.false_alarms.sum() > 0
    assert result["kwer"] == pytest.approx((result["misses"] + result["false_alarms"]) / result["num_keywords"])
    assert result["accuracy"] == pytest.approx(1 - result["kwer_miss"])
    assert result["recall_macro"] == pytest.approx(np.mean([row["recall"] for row in rows if row["num_keywords"]]))
    assert result["by_keyword"]["没有"]["recall"] is None


@pytest.mark.parametrize("name", ["cer", "mer", "wer", "kwer"])
def test_the_library_loads_the_metric_folders_without_network(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"keywords": ["loan"]} if name == "kwer" else {}
    metric = evaluate.load(str(ROOT / "evaluation" / "metrics" / name), **options)
    assert metric.compute(predictions=["a loan"], references=["A loan!"])[name] == 0.0


def script(path: str):
    """A script of evaluation/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "evaluation" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pushed_folder_needs_no_package(tmp_path, monkeypatch):
    push = script("metrics/push.py")
    folder = tmp_path / "kwer"
    monkeypatch.setattr("sys.argv", ["push.py", "kwer", "--output_dir", str(folder)])
    push.main()
    assert "nest_hf" not in "".join(path.read_text() for path in folder.iterdir())
    metric = evaluate.load(str(folder), keywords=["办理"])
    assert type(metric).__module__ != metrics.__name__
    assert metric.compute(predictions=["办理"], references=["办理业务"])["kwer"] == 0.0
    with pytest.raises(ValueError, match="`output_dir` is .* which exists"):
        push.main()
    with pytest.raises(ValueError, match="the library looks for 'cer'"):
        push.write_folder("cer", tmp_path / "metric", "user/cer")


def test_the_benchmark_scores_what_it_draws(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scoring.py", "--utterances", "2000", "--json"])
    script("benchmarks/scoring.py").main()
    figures = json.loads(capsys.readouterr().out)
    assert 0.05 < figures["cer"] < 0.2 and figures["num_spans"] > 400 and figures["level"] == "zh"
