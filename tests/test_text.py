"""The normaliser: the published vectors, the same result when applied twice, and ordinary words left alone."""

import random
import re

import pytest

from nest_hf.chinese_numbers import cardinal_value, chinese_numbers_to_arabic
from nest_hf.text import LEVELS, normalize

VECTORS = {
    "一百二十三": "123",
    "三点五": "3.5",
    "百分之三点五": "3.5%",
    "3.5％": "3.5%",
    "一三八零零一二三四五六": "13800123456",
    "幺三八": "138",
    "二零二六年一月五号": "2026年1月5号",
    "二〇二六年": "2026年",
    "2026年1月5号": "2026年1月5号",
    "两千元": "2000元",
    "零点五": "0.5",
    "一些人": "一些人",
    "万一": "万一",
    "星期一": "星期一",
    "一起去": "一起去",
    "等一会儿": "等一会儿",
    "十分满意": "十分满意",
    "统一": "统一",
    "一百二十万五千": "1205000",
    "二十四小时": "24小时",
    "下午三点半": "下午3点半",
    "利率是4.35%": "利率是4.35%",
}

WORDS = (
    "千万不要 千万别 三心二意 一心一意 一样 不一样 一下 一直 一共 一定 一般 一切 一旦 一边 "
    "一方面 第一 第一次 唯一 同一 之一 初一 一点点 百度 百货 百姓 千岛湖 万达 万科 三亚 四川 "
    "二手车 三方 两边 一点也不 一点都没有 一点一点 两点一线 三五成群 七上八下 五颜六色 四面八方 "
    "十字路口 十全十美 周一 礼拜三 星期六 几十 十几个 几百块 数千人 好几万 三四个 七八百 两三百 "
    "十五六 二三十岁 三分之一 百分之几 百分之十几 万无一失 千方百计 零售 零食 一五一十 九九八十一 "
    "三番五次 三天两头 说一不二 半斤八两 一个人 一年四季 成千上万 亿万 百分百 按一 选二"
).split()

SPOKEN = {
    "一百五": "150",
    "一千二": "1200",
    "两万五": "25000",
    "一亿二": "120000000",
    "两千零五": "2005",
    "一万零五百": "10500",
    "一亿三千万": "130000000",
    "三点五万": "35000",
    "3.5万": "35000",
    "1亿3000万": "130000000",
    "二十多岁": "20多岁",
    "三百多万": "300多万",
    "百分之百": "100%",
    "百分之零点五": "0.5%",
    "百分之0.5": "0.5%",
    "百分之五十多": "50%多",
    "三块五": "3块5",
    "一百二十块五": "120块5",
    "负五度": "负5度",
    "-5度": "负5度",
    "零下五度": "零下5度",
    "一点钟": "1点钟",
    "晚上一点": "晚上1点",
    "晚上一点都不冷": "晚上一点都不冷",
    "两点零五分": "2点05分",
    "利率三点零五": "利率3.05",
    "一点五十": "1点50",
    "15：30": "15点30",
    "三个月": "3个月",
    "一月一日": "1月1日",
    "九八年": "98年",
    "七八年": "七八年",
    "八零后": "80后",
    "打八五折": "打85折",
    "身高一米八": "身高1米8",
    "尾号七七八八": "尾号7788",
    "一百一个": "100一个",
    "二十一个": "21个",
    "统一一百": "统一100",
    "第十五": "第15",
    "幺幺零": "110",
    "一一九": "119",
    "合一百二十元": "合120元",
    "万一百分之三": "万一3%",
    "貸款三萬兩千": "贷款32000",
}


@pytest.mark.parametrize(("text", "expected"), VECTORS.items())
def test_numbers_of_the_definition(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize("word", WORDS)
def test_a_word_with_a_numeral_stays_a_word(word):
    assert normalize(f"我说{word}吧") == f"我说{word}吧"


@pytest.mark.parametrize(("text", "expected"), SPOKEN.items())
def test_numbers_as_they_are_spoken(text, expected):
    assert normalize(text) == expected


def test_cardinals_are_read_as_a_public_library_writes_them():
    cn2an = pytest.importorskip("cn2an")
    rng = random.Random(0)
    for _ in range(2000):
        value = rng.randrange(10, 10 ** rng.randrange(2, 12))
        spoken = cn2an.an2cn(value)
        assert cardinal_value(spoken) == value, spoken
        assert normalize(f"共{spoken}元") == f"共{value}元"


def strings(number: int, seed: int) -> list[str]:
    """Random text of any code points (also lone surrogates), of numerals, and of what the rules look at."""
    rng = random.Random(seed)
    pools = (
        "零〇一二三四五六七八九十百千万亿两幺点分之百块元年月日第几周半多来,，. %-:0123456789儿",
        "漢字轉換薴苧乾隆萬一統 <|>'’.%-abcABCßİŉ，嗯啊um\u0301\u200b\ufe0f\ud800",
        "".join(map(chr, range(0x20, 0x3400))),
    )
    texts = []
    for number_of_text in range(number):
        length, pool = rng.randrange(24), number_of_text % 4
        anywhere = (chr(rng.randrange(0x110000)) for _ in range(length))
        texts.append("".join(anywhere if pool == 3 else rng.choices(pools[pool], k=length)))
    return texts


@pytest.mark.parametrize("level", [*LEVELS, "zh with options"])
def test_normalising_twice_changes_nothing(level):
    level, _, options = level.partition(" ")
    options = {"remove_fillers": True, "fold_erhua": True} if options else {}
    for text in strings(10_000, seed=1):
        once = normalize(text, level, **options)
        assert normalize(once, level, **options) == once, ascii(text)


def test_zh_leaves_letters_marks_digits_single_spaces_and_the_signs_of_numbers():
    for text in strings(2000, seed=2):
        normal = normalize(text)
        assert normal == normal.strip() and "  " not in normal
        assert not re.search(r"(?<![0-9])[.%]|\.(?![0-9])|[，。、,!?<>|]", normal), ascii(text)


def test_text_without_a_numeral_never_enters_the_number_rules(monkeypatch):
    class Untouchable:
        def sub(self, *_):
            raise AssertionError("the slow path was entered")

    monkeypatch.setattr("nest_hf.chinese_numbers._NUMBER", Untouchable())
    assert normalize("请问您要办理什么业务，OK？") == "请问您要办理什么业务ok"
    with pytest.raises(AssertionError):
        normalize("三点五")


def test_long_runs_of_numerals_are_read_in_linear_time():
    text = "一二三四五六七八九零" * 5000
    assert normalize(text) == "1234567890" * 5000
    assert normalize("一" * 5000 + "点五万") == "1" * 5000 + "5000"
    assert chinese_numbers_to_arabic("十百千万" * 2000) == "十百千万" * 2000


def test_basic_leaves_numbers_and_traditional_characters():
    assert normalize("利率４.３５％，电话：一三八", "basic") == "利率435电话一三八"
    assert normalize("電話", "basic") == "電話"


def test_raw_is_nfc_alone():
    assert normalize("ＡＢＣ，Cafe\u0301 一", "raw") == "ＡＢＣ，Café 一"


def test_spaces_stay_between_words_of_letters_only():
    assert normalize("用 iPhone 14 Pro 打 电 话") == "用iphone 14 pro打电话"
    assert normalize("Don’t, stop -- it's 'fine'") == "don't stop it's fine"


def test_options_change_what_they_name_alone():
    text = "嗯，女儿一会儿去哪儿啊，hmm, summer"
    assert normalize(text) == "嗯女儿一会儿去哪儿啊hmm summer"
    assert normalize(text, remove_fillers=True) == "女儿一会儿去哪儿summer"
    assert normalize(text, fold_erhua=True) == "嗯女儿一会去哪啊hmm summer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "好", "level": "ZH"}, "`level` is 'ZH'; choose one of raw, basic, zh"),
        ({"text": None}, "`text` is None (NoneType)"),
        ({"text": "好", "level": "raw", "fold_erhua": True}, "no effect at `level` 'raw'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        normalize(**arguments)
