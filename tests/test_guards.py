"""Guards: what the CTC head hears is never cut, what it does not hear does not stay."""

import json
import logging

import pytest
import torch
from ctc_posteriors import spike_path, spikes

from nest_hf.guards import (
    BlankStatistics,
    GuardSettings,
    blank_statistics,
    guard_text,
    longest_repetition,
    max_new_tokens,
    repetition_length,
    tokens_per_second,
)

SPEECH = BlankStatistics(share=0.7, mean=0.7)
SILENCE = BlankStatistics(share=1.0, mean=0.99)


@pytest.mark.parametrize(
    ("lm_text", "ctc_text"),
    [
        ("哈哈哈哈", "哈哈哈"),
        ("哈哈哈哈哈哈哈哈哈哈哈哈", "哈哈哈哈哈哈哈"),
        ("谢谢谢谢", "谢谢谢谢"),
        ("我的号码是88888888", "我的号码是八八八八八八八八"),
        ("13800000000", "一三八零零零零零零零零"),
        ("对对对对对对对对对对对对对对对", "对对对对对对对对对对对"),
        ("一共100000000元", "一共一亿元"),
        ("好的好的好的好的好的", "好的好的好的"),
        ("今天天气很好", "今天天汽很好"),
        ("", "嗯"),
    ],
)
def test_what_the_ctc_head_confirms_is_kept(lm_text, ctc_text):
    decision = guard_text(lm_text, ctc_text, SPEECH)
    assert (decision.text, decision.source, decision.reason) == (lm_text, "lm", "ok")


@pytest.mark.parametrize(
    ("lm_text", "ctc_text"),
    [
        ("今天天气" + "很好" * 40, "今天天气很好"),
        ("哈" * 60, "哈哈哈"),
        ("8" * 50, "八八八"),
        ("我要查一下我的账单" * 5, "我要查一下我的账单"),
        ("请您稍等。" + "谢谢您的来电。" * 6 + "再", "请您稍等"),
    ],
)
def test_a_loop_that_the_ctc_head_does_not_hear_gives_its_text(lm_text, ctc_text):
    decision = guard_text(lm_text, ctc_text, SPEECH)
    assert (decision.text, decision.source, decision.reason) == (ctc_text, "ctc", "loop")


def test_text_on_silence_becomes_empty():
    decision = guard_text("谢谢观看", "", SILENCE)
    assert (decision.text, decision.source, decision.reason) == ("", "empty", "silence")
    unsure = guard_text("嗯", "", BlankStatistics(share=1.0, mean=0.6))
    assert (unsure.text, unsure.reason) == ("嗯", "ok")
    spoken = guard_text("嗯", "嗯", BlankStatistics(share=0.99, mean=0.98))
    assert spoken.text == "嗯"


def test_far_more_text_than_is_heard_gives_the_ctc_text():
    assert guard_text("感谢您收看本期节目请不要忘记点赞订阅我们的频道", "嗯", SPEECH).reason == "too long"
    lenient = GuardSettings(length_slack=30)
    assert guard_text("感谢您收看本期节目请不要忘记点赞订阅我们的频道", "嗯", SPEECH, settings=lenient).reason == "ok"


def test_an_answer_without_end_gives_the_ctc_text_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        decision = guard_text("今天天气很好我们", "今天天气很好", SPEECH, num_tokens=32, max_new_tokens=32)
    assert (decision.text, decision.reason) == ("今天天气很好", "no end") and "max_new_tokens" in caplog.text
    assert guard_text("今天天气很好", "今天天气很好", SPEECH, num_tokens=31, max_new_tokens=32).reason == "ok"


def test_a_decision_is_one_json_line():
    decision = guard_text("哈" * 60, "哈哈哈", SPEECH, num_tokens=61, max_new_tokens=100)
    record = json.loads(json.dumps(decision.to_dict(), ensure_ascii=False))
    assert record["loop_period"] == 1 and record["loop_length"] == 60 and record["ctc_loop_length"] == 3
    assert record["blank_share"] == 0.7 and record["num_tokens"] == 61
    with pytest.raises(AttributeError):
        decision.text = ""


def repetition_by_definition(text, period):
    """The longest slice of at least two periods that equals itself shifted."""
    lengths = [
        end - start
        for start in range(len(text))
        for end in range(start + 2 * period, len(text) + 1)
        if text[start : end - period] == text[start + period : end]
    ]
    return max(lengths, default=0)


def test_repetitions_by_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        text = "".join("ab"[i] for i in torch.randint(2, (12,), generator=generator))
        by_period = {period: repetition_by_definition(text, period) for period in range(1, 7)}
        assert {period: repetition_length(text, period) for period in by_period} == by_period
        period, length = longest_repetition(text)
        assert length == max(by_period.values()) and by_period.get(period, 0) == length
    assert longest_repetition("") == longest_repetition("abc") == (0, 0)
    assert longest_repetition([7, 5, 6, 5, 6, 5, 9]) == (2, 5)


def test_blank_statistics_count_valid_frames_only():
    log_probs = spikes(spike_path([3, 4], [1, 5], 20), 6, peak=0.9)[None].repeat(4, 1, 1)
    log_probs[0, 10:] = float("nan")
    first, second, third, fourth = blank_statistics(log_probs, torch.tensor([10, 20, 0, 10]), blank_id=0)
    assert (first.share, second.share) == (0.8, 0.9)
    assert second.mean == pytest.approx(log_probs[1, :, 0].exp().mean().item(), abs=1e-4)
    assert (third.share, third.mean) == (1.0, 1.0)
    assert fourth == first  # whatever the padding holds
    assert blank_statistics(torch.zeros(0, 3, 2), blank_id=0) == []


def test_room_for_tokens_grows_with_the_longest_audio():
    assert max_new_tokens(10.0, tokens_per_s=12, extra=16) == 136
    assert max_new_tokens([1.0, 10.0, 3.0]) == max_new_tokens(10.0)
    assert max_new_tokens(0.0) == max_new_tokens([]) == 16
    assert max_new_tokens(1e6, limit=500) == 500
    with pytest.raises(ValueError, match="duration_s"):
        max_new_tokens(float("nan"))
    with pytest.raises(ValueError, match="tokens_per_s"):
        max_new_tokens(1.0, tokens_per_s=0)


def test_the_fastest_speech_of_a_data_set():
    def tokenizer(texts, add_special_tokens):
        return {"input_ids": [[0] * len(text) for text in texts]}

    rate = tokens_per_second(["今天天气", "好"], [1.0, 1.0], tokenizer, quantile=1.0, headroom=1.5)
    assert rate == pytest.approx(6.0)
    with pytest.raises(ValueError, match="durations_s"):
        tokens_per_second(["好"], [0.0], tokenizer)
