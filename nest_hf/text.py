"""The one text normaliser: what scoring, hotwords and keyword lists compare is written the same way."""

import functools
import unicodedata

import opencc
import regex

from .chinese_numbers import chinese_numbers_to_arabic

LEVELS = ("raw", "basic", "zh")

_SURROGATE = regex.compile(r"\p{Cs}")
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_TAG = regex.compile(r"<\|[^|<>]*\|>")
_APOSTROPHE = regex.compile("[‘’＇]")
_IN_DIGITS = regex.compile(r"(?<=[0-9])[^\p{L}\p{M}\p{N}\s]+(?=[0-9])")
_PUNCTUATION = regex.compile(r"(?<=\p{Latin})'(?=\p{Latin})(*SKIP)(*FAIL)|[^\p{L}\p{M}\p{N}\s]")
_PUNCTUATION_BUT_NUMBERS = regex.compile(
    r"(?:(?<=\p{Latin})'(?=\p{Latin})|(?<=[0-9])\.(?=[0-9])|(?<=[0-9])%)(*SKIP)(*FAIL)|[^\p{L}\p{M}\p{N}\s]"
)
_SPACES = regex.compile(r"\s+")
_SPACE_BESIDE_HAN = regex.compile(r"(?<=\p{Han}) | (?=\p{Han})")
_SPACE_BEFORE_PERCENT = regex.compile(r"(?<=[0-9])\s+(?=%)")
_CLOCK = regex.compile(r"(?<![0-9:])(2[0-4]|[01]?[0-9]):([0-5][0-9])(?![0-9:])")
_MINUS = regex.compile(r"(?<![\w.])[-−](?=[0-9]+(?:\.[0-9]+)?[%度°])")

_FILLER = regex.compile(r"[嗯啊呃唔哦噢诶欸哎唉呣]|(?<![\p{Latin}0-9'])(?:u+h+|u+m+|h+m+|m{2,})(?![\p{Latin}0-9'])")
_ERHUA = regex.compile("(?<=\\p{Han})(?<![女婴幼胎孤男少小健宠育生血托患产弃])儿(?![子童女科媳歌时孙])")

_PLAIN = regex.compile("[0-9a-z\u4e00-\u9fff]*")


def normalize(text: str, level: str = "zh", *, remove_fillers: bool = False, fold_erhua: bool = False) -> str:
    """
    Writes text the way it is scored. Normalising twice changes nothing, and no text raises.

    `raw` is Unicode's NFC only, so that one character has one code:
    >>> normalize("Cafe\\u0301，你好！", "raw")
    'Café，你好！'

    `basic` does NFKC (full width and compatibility forms) and case folding:
    >>> normalize("ＡＢＣ①", "basic")
    'abc1'

    takes tags out:
    >>> normalize("<|zh|><|NEUTRAL|>你好", "basic")
    '你好'

    takes out what is no letter, mark or digit, but for the apostrophe within a word; between digits without a trace,
    elsewhere for a space:
    >>> normalize("Don't stop, well-known… 1,000 138-0013", "basic")
    "don't stop well known 1000 1380013"

    and takes out the spaces beside Han characters:
    >>> normalize("用 iPhone 14 打 电 话", "basic")
    '用iphone 14打电话'

    `zh`, before any of that but NFKC, writes traditional characters as simplified ones:
    >>> normalize("臺灣的電話號碼")
    '台湾的电话号码'

    and numbers with Arabic digits (for the rules see [`~chinese_numbers.chinese_numbers_to_arabic`]), also the time of
    day, and a minus before degrees or per cent as the word that is spoken:
    >>> normalize("手机号一三八，下午 15:30，-5度"), normalize("下午十五点三十，负五度")
    ('手机号138下午15点30负5度', '下午15点30负5度')

    and keeps `%` and the decimal point inside numbers:
    >>> normalize("利率是４.３５ ％。"), normalize("百分之三点五")
    ('利率是4.35%', '3.5%')

    Punctuation separates numerals in the first instance, but text without punctuation has to come out the same:
    >>> normalize("一、三、八"), normalize("一三八")
    ('138', '138')

    Off by default, since they change what is measured:
    >>> normalize("嗯，那个呃，um, OK", remove_fillers=True)
    '那个ok'
    >>> normalize("一会儿去哪儿接女儿", fold_erhua=True)
    '一会去哪接女儿'

    Args:
        text (`str`): Any text, also with lone surrogates.
        level (`str`, *optional*, defaults to `"zh"`): `"raw"`, `"basic"` or `"zh"`.
        remove_fillers (`bool`, *optional*, defaults to `False`): Whether 嗯, 啊, 呃 and their like, uh, um and hmm go.
        fold_erhua (`bool`, *optional*, defaults to `False`): Whether the 儿 that only colours a syllable goes.

    Returns:
        `str`: The normalised text.

    Raises:
        ValueError: for an unknown level, an option at level `raw`, or what is not a string.
    """
    check_level(level, remove_fillers=remove_fillers, fold_erhua=fold_erhua)
    if not isinstance(text, str):
        raise ValueError(f"`text` is {text!r} ({type(text).__name__}); pass a string.")
    if level == "raw":
        return unicodedata.normalize("NFC", text)
    # What is left when something was taken out can be read anew, so the rules run until they change nothing.
    for _ in range(len(text) + 2):
        before, text = text, _once(text, level == "zh", remove_fillers, fold_erhua)
        if text == before:
            break
    return text


def check_level(level: str, *, remove_fillers: bool = False, fold_erhua: bool = False) -> None:
    """Refuses an unknown level, and options that `raw` would not apply."""
    if level not in LEVELS:
        raise ValueError(f"`level` is {level!r}; choose one of {', '.join(LEVELS)}.")
    if level == "raw" and (remove_fillers or fold_erhua):
        raise ValueError("`remove_fillers` and `fold_erhua` have no effect at `level` 'raw'; choose 'basic' or 'zh'.")


def _once(text: str, chinese: bool, remove_fillers: bool, fold_erhua: bool) -> str:
    text = unicodedata.normalize("NFKC", text)
    plain = _PLAIN.fullmatch(text) is not None  # most text: nothing to strip
    if not plain:
        text = _TAG.sub(" ", _INVISIBLE.sub("", _SURROGATE.sub(" ", text)))
        text = _APOSTROPHE.sub("'", text)
    if chinese:
        text = _to_simplified().convert(text)
        if not plain:
            text = _MINUS.sub("负", _CLOCK.sub(_clock, _SPACE_BEFORE_PERCENT.sub("", text)))
            text = _SPACE_BESIDE_HAN.sub("", text)
        text = chinese_numbers_to_arabic(text)
    if not plain:
        text = unicodedata.normalize("NFKC", text.casefold())
        text = _IN_DIGITS.sub(lambda match: "." if chinese and match[0] == "." else "", text)
        text = (_PUNCTUATION_BUT_NUMBERS if chinese else _PUNCTUATION).sub(" ", text)
    if remove_fillers:
        text = _FILLER.sub("", text)
    if fold_erhua:
        text = _ERHUA.sub("", text)
    if not plain:
        text = _SPACE_BESIDE_HAN.sub("", _SPACES.sub(" ", text).strip())
    return text


def _clock(match: regex.Match) -> str:
    hour, minute = match.groups()
    return f"{int(hour)}点{'' if minute == '00' else minute}"


@functools.cache
def _to_simplified() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")
