"""The grammar of calls: sentences that can be said and scored, and tests that hold what training has not."""

import re
import sys

import numpy as np
import pytest

from nest_hf.data.call_grammar import (
    DOMAINS,
    KEYWORDS,
    NUM_CHARACTERS,
    SEEN,
    UNSEEN,
    UNSEEN_KEYWORDS,
    dictionary_words,
    draw_sentence,
    draw_word,
    draw_word_row,
    keyword_file,
    literal_pieces,
    read_mandarin,
    templates,
)
from nest_hf.keywords import KeywordFinder, read_keywords
from nest_hf.text import normalize


@pytest.fixture(scope="module")
def training_text() -> str:
    rng = np.random.default_rng(0)
    return "\n".join(draw_sentence(rng).text for _ in range(8000))


def test_sentences_are_short_and_written_as_they_are_spoken(training_text):
    for text in training_text.split("\n"):
        assert NUM_CHARACTERS[0] <= len(text) <= NUM_CHARACTERS[1]
        assert re.fullmatch("[\u4e00-\u9fff]+", text), text


def test_the_vocabulary_is_small_and_has_every_character_of_the_tests(training_text):
    known = set(training_text)
    assert 300 <= len(known) <= 460
    pieces = [p for domain in DOMAINS for t in templates(domain, seen=False) for p in literal_pieces(t)]
    assert set("".join([*pieces, *UNSEEN])) <= known


def test_no_training_sentence_has_an_unseen_keyword_or_speaks_an_unseen_template(training_text):
    assert [keyword for keyword in UNSEEN if keyword in training_text] == []
    for template in (t for domain in DOMAINS for t in templates(domain, seen=False)):
        piece = max(literal_pieces(template), key=len)
        assert len(piece) >= 3 and piece not in training_text, template


def test_dictionary_words_need_no_character_that_sentences_have_not_and_are_no_unseen_keywords(training_text):
    assert len(dictionary_words()) > 1000
    assert set("".join(dictionary_words())) <= set(training_text)
    rng = np.random.default_rng(2)
    words = [draw_word(rng) for _ in range(5000)]
    assert all(2 <= len(word) <= 4 for word in words) and len(set(words)) > 3000
    assert [word for word in words if any(keyword in word for keyword in UNSEEN)] == []


def test_a_word_that_is_no_keyword_takes_the_place_of_one():
    for seed in range(50):
        sentence = draw_sentence(np.random.default_rng(seed), keyword="下午花园")
        assert "下午花园" in sentence.text and sentence.keyword in ("none", "seen")


def test_without_the_dictionary_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    dictionary_words.cache_clear()
    with pytest.raises(ValueError, match=r"pip install .*demo"):
        dictionary_words()
    dictionary_words.cache_clear()


def test_rows_of_words_are_of_the_dictionary_and_as_long_as_sentences():
    rng = np.random.default_rng(3)
    rows = [draw_word_row(rng) for _ in range(2000)]
    assert all(NUM_CHARACTERS[0] <= len(row) <= NUM_CHARACTERS[1] for row in rows)
    assert [row for row in rows if any(keyword in row for keyword in UNSEEN)] == []
    words = set(dictionary_words())
    for row in rows[:200]:  # can be cut into words of the dictionary
        ends = {0}
        for end in range(1, len(row) + 1):
            if any(row[start:end] in words for start in ends):
                ends.add(end)
        assert len(row) in ends, row


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("keyword", UNSEEN)
def test_a_keyword_that_is_asked_for_occurs(keyword, seen):
    sentence = draw_sentence(np.random.default_rng(1), seen_template=seen, keyword=keyword)
    assert keyword in sentence.text
    assert (sentence.template, sentence.keyword) == ("seen" if seen else "unseen", "unseen")


def test_the_keyword_file_is_read_back_in_groups(tmp_path):
    (tmp_path / "keywords.txt").write_text(keyword_file(), encoding="utf-8")
    finder = KeywordFinder(read_keywords(tmp_path / "keywords.txt"))
    assert len(SEEN) >= 30 and len(UNSEEN) == 10
    assert finder.groups == {k: d for d in DOMAINS for k in KEYWORDS[d] + UNSEEN_KEYWORDS[d]}


def test_no_keyword_hides_in_another():
    words = SEEN + UNSEEN
    assert [(a, b) for a in words for b in words if a != b and a in b] == []


@pytest.mark.parametrize("number", [1, 10, 15, 20, 100, 101, 110, 115, 2050, 3005, 9999])
def test_numbers_read_back_as_they_were(number):
    assert normalize(f"一共{read_mandarin(number)}元", "zh") == f"一共{number}元"


def test_a_sentence_depends_on_its_generator_alone():
    first, second = ([draw_sentence(np.random.default_rng(s)) for s in range(50)] for _ in range(2))
    assert first == second and len({sentence.text for sentence in first}) > 40
