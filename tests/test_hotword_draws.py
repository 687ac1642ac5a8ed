"""Hotwords that training prompts name: of the text and of other texts, and the same in every run."""

import numpy as np
import pytest
from spoken_tones import make_utterances

from nest_hf.data import ExampleKey
from nest_hf.data.hotword_draws import draw_hotwords, draw_word
from nest_hf.data.labelled import LabelledDataset, load_labelled

TEXTS = ["您的信用卡账单已经到期", "请问您是王先生本人吗", "how are you today", "8月3号 还款 500元不多"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_word_is_of_the_text_and_of_no_odd_length(text):
    drawn = {draw_word(text, np.random.default_rng(seed)) for seed in range(300)}
    assert all(word in text for word in drawn) and len(drawn) > 2
    assert all(2 <= len(word) <= 5 and " " not in word for word in drawn)
    if " " in text and text.isascii():
        assert drawn == {"how", "are", "you", "today"}


@pytest.mark.parametrize("text", ["", "一", "a b", "。，"])
def test_a_text_without_words_gives_none(text):
    rng = np.random.default_rng(0)
    assert draw_word(text, rng) is None and draw_hotwords(text, [text], rng) == ()


def test_lists_name_what_is_said_and_what_is_not_in_any_order():
    lists = [draw_hotwords(TEXTS[0], TEXTS, np.random.default_rng(seed)) for seed in range(400)]
    said = [[word in TEXTS[0] for word in words] for words in lists]
    assert 0.6 < np.mean([any(row) for row in said]) < 0.8 and max(map(sum, said)) == 1
    assert 0.1 < np.mean([not all(row) and any(row) for row in said])
    assert {row.index(True) for row in said if any(row)} >= {0, 1, 2}
    assert max(map(len, lists)) <= 6 and all(len(set(words)) == len(words) for words in lists)


def test_a_share_of_the_prompts_names_hotwords_and_own_keywords_stay(tmp_path):
    labelled = load_labelled(make_utterances(tmp_path / "train", 40, length=6), name="train")
    labelled.requests[0] = labelled.requests[0]._replace(keywords=("天地",))
    plain, named = LabelledDataset(labelled), LabelledDataset(labelled, hotword_share=0.5)
    keys = [ExampleKey(epoch, (row,)) for epoch in range(4) for row in range(40)]
    lists = [named[key].request.keywords for key in keys]
    assert lists == [named[key].request.keywords for key in keys]
    assert all(named[key].request.keywords == ("天地",) for key in keys if key.rows == (0,))
    assert 0.3 < np.mean([bool(words) for words in lists]) < 0.6 and lists[:40] != lists[40:80]
    assert all(named[key].text == plain[key].text for key in keys)
    assert all(not plain[key].request.keywords for key in keys if key.rows != (0,))
