"""Keyword lists: their file, the longest match, aliases, and one message for each bad line."""

import random
import re

import pytest

from nest_hf.alignment import Span
from nest_hf.keywords import Keyword, KeywordFinder, read_keywords

FILE = """\ufeff# products of the bank
利率
信用卡\t贷记卡,credit card

[actions]
办理业务
# the shorter one too
办理
"""


def written(tmp_path, content: str | bytes):
    path = tmp_path / "keywords.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_has_comments_aliases_and_groups(tmp_path, newline):
    assert read_keywords(written(tmp_path, FILE.replace("\n", newline))) == [
        Keyword("利率"),
        Keyword("信用卡", ("贷记卡", "credit card")),
        Keyword("办理业务", group="actions"),
        Keyword("办理", group="actions"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("利率\n，。\n", "line 2: '，。' normalises to nothing"),
        ("利率\t利息,,\n", "line 1: '' normalises to nothing"),
        ("利率\n\t利息\n", "line 2: '' normalises to nothing"),
        ("利率\t利息\t息\n", "line 1 has 2 tabs"),
        ("利率\n[ ]\n", "line 2 is a group without a name"),
        ("# nothing\n", "holds no keyword"),
        ("", "holds no keyword"),
        ("利率\n办理".encode() + "\n业务".encode("gb18030"), "line 3 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_keywords(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.txt', which is no file"):
        read_keywords(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ([], "`keywords` is empty"),
        (["办理", " ，"], "' ，', which normalises to nothing at `level` 'zh'"),
        (["办理", None], "holds None (NoneType)"),
        ("办理", "`keywords` is '办理'; pass a list"),
        (None, "`keywords` is None; pass a list"),
        ([Keyword("办理", ("申请",)), Keyword("申请")], "'申请' for both '办理' and '申请'"),
        ([Keyword("办理", group="a"), Keyword("办 理", group="b")], "in the groups 'a' and 'b'"),
    ],
)
def test_a_bad_list_is_named(keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        KeywordFinder(keywords)


def test_keywords_are_normalised_like_the_text():
    finder = KeywordFinder(["百分之三點五", "Wi Fi", "Wi Fi"])
    assert list(finder.groups) == ["3.5%", "wifi"]
    assert finder.find("利率3.5%wifi") == [Span(2, 6, "3.5%"), Span(6, 10, "wifi")]


def test_spans_are_the_longest_from_left_to_right_without_overlap():
    rng = random.Random(0)
    for _ in range(500):
        keywords = {"".join(rng.choices("甲乙丙", k=rng.randrange(1, 4))) for _ in range(rng.randrange(1, 6))}
        text = "".join(rng.choices("甲乙丙丁", k=12))
        expected, place = [], 0
        while place < len(text):
            fitting = range(min(3, len(text) - place), 0, -1)
            lengths = [length for length in fitting if text[place : place + length] in keywords]
            if lengths:
                expected.append(Span(place, place + lengths[0], text[place : place + lengths[0]]))
            place += lengths[0] if lengths else 1
        assert KeywordFinder(sorted(keywords)).find(text) == expected


def test_an_alias_stands_for_its_keyword():
    finder = KeywordFinder([Keyword("信用卡", ("贷记卡", "卡"))])
    text = "办卡和贷记卡和信用卡吧"
    spans = finder.find(text)
    assert spans == [Span(1, 2, "信用卡"), Span(3, 6, "信用卡"), Span(7, 10, "信用卡")]
    rewritten, moved = finder.without_aliases(text, spans)
    assert rewritten == "办信用卡和信用卡和信用卡吧"
    assert [rewritten[span.start : span.end] for span in moved] == ["信用卡"] * 3
