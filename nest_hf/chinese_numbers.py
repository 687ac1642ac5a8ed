"""Chinese numerals to Arabic digits, for text that is scored: numbers are converted, ordinary words are left alone."""

import re

DIGITS = {character: str(value) for value, character in enumerate("零一二三四五六七八九")} | {"〇": "0", "幺": "1"}
VALUES = {character: int(digit) for character, digit in DIGITS.items()} | {"两": 2}
UNITS = {"十": 10, "百": 100, "千": 1000}
SCALES = {"万": 10**4, "亿": 10**8}

_DIGIT = "零〇一二三四五六七八九幺"
_ANY = _DIGIT + "两十百千万亿"
_NONZERO = "[一二三四五六七八九]"
_ONE = "[一二三四五六七八九两]"
_BELOW_10000 = f"(?:{_ONE}千)?(?:[零〇]?{_ONE}百)?(?:[零〇]?{_NONZERO}?十)?(?:[零〇]?{_NONZERO})?"
_CARDINAL = re.compile(f"(?:(?:两|{_BELOW_10000})亿)?(?:(?:两|{_BELOW_10000})万)?{_BELOW_10000}")

# Words that hold a numeral and are no number. Each is matched where it begins, so that its numeral is never reached.
_AFTER_ONE = "些下样起会共直般定边面旦律致切向再味时度带代流线块点半刻"
_ARTICLES = "个天年次位张件条种家项套份人名周层楼座部台段杯本遍斤"
_WORDS = (
    "[统唯万同专单逐合之初不]一(?![十百千万亿](?!分之))|一五一十|三六九等|四舍五入|四分五裂|四周|四面八方|"
    "二次元|三番五次|两次三番|三天两头|三年五载|两点一线|三点一线|一点一滴|一点一点|一点点|百分百|百分点|万万|十万火急|"
    "七七八八(?=[的了])|千儿八百|三十而立|五五开|九九归一|三百六十行|五十步笑百步|十分(?!钟)|零距离|零售|零食|零钱|零件|零碎|"
    "(?:星期|礼拜|周)[一二三四五六](?:(?![十百千万亿])|(?=百度|百货|万达|万科))"
)

# What makes a number of a single numeral. 一 is mostly an article, so it needs a narrower context.
_MEASURE = re.compile(
    "个(?!性|体|别)|次(?!元)|天|年|周|月|号|日|岁|楼|层|元|块|毛|点|度|秒|分钟|小时|公里|千米|平米|平方|米|斤|公斤|千克|"
    "吨|升|位|名|张|台|辆|套|件|条|倍|期|级|折|章|节|页|笔|户|遍|届|季度|星级"
)
_MEASURE_OF_ONE = re.compile("月|号|岁|楼|元(?!复始)|秒|分钟|小时|公里|公斤|千克|年级|星级")

_HOUR = f"(?:二十[一二三四]?|十{_NONZERO}?|[零一二两三四五六七八九])"
_MINUTE = f"(?:[二三四五]?十{_NONZERO}?|[零〇]?{_NONZERO}(?=分))"
_PART_OF_DAY = "上午|下午|晚上|早上|凌晨|中午|今晚|明早|傍晚|半夜|夜里"
_TEN_THOUSANDS = "[0-9]{1,12}(?:\\.[0-9]{1,12})?[亿万]"
_DECIMAL = f"点(?!一(?:[{_AFTER_ONE}{_ARTICLES}]))(?P<{{name}}>[{_DIGIT}]++)(?![十百千两点分刻几多来])"

_NUMBER = re.compile(
    f"(?P<word>{_WORDS}|(?!百分之)[{_ANY}]+分之[{_ANY}]+)"
    "|百分之(?:(?P<arabic_percent>[0-9]+(?:\\.[0-9]+)?)"
    f"|(?P<percent>[{_ANY}]++)(?:{_DECIMAL.format(name='percent_decimals')})?(?!几))"
    f"|(?<![{_ANY}0-9第几数])(?P<hour>{_HOUR})点(?:(?P<minute>{_MINUTE})(?![{_ANY}几多来])|(?=半|钟|整|[一三]刻))"
    f"|(?<={_PART_OF_DAY})(?P<one>一)(?=点(?:[^{_ANY}都也儿不没]|$))"
    f"|(?P<large>[{_ANY}]++)(?P<unit>[块米])(?P<small>(?<=块){_NONZERO}|(?<=米){_NONZERO}{{1,2}})"
    "(?=[毛角钱的吧吗呢啊左到]|[^\\w]|$)"
    f"|(?<![0-9.])(?P<run>[{_ANY}]++)(?:{_DECIMAL.format(name='decimals')}(?P<scale>[万亿](?!一))?)?(?![0-9])"
    f"|(?<![0-9.])(?P<arabic>(?:{_TEN_THOUSANDS})+(?:[1-9]千)?|[1-9][百千](?![货姓度分岛]))(?![{_ANY}0-9达科岁能物国历])"
)
_NUMERAL = re.compile(f"[{_ANY}]")


def chinese_numbers_to_arabic(text: str) -> str:
    """Writes the numbers of simplified Chinese text with Arabic digits.

    The rules, by what is spoken. A number is converted only where all of its numerals make one number: what is left
    over or only approximate (十几, 三四个, 两三百) stays as it is.

    Cardinals, also the short forms in which the last unit is left out:
    >>> [chinese_numbers_to_arabic(text) for text in ("一百二十三", "两千零五", "一百五", "一百二十万五千", "二十多")]
    ['123', '2005', '150', '1205000', '20多']

    Three or more digits read one by one (two, if one of them is zero or 幺, or 年 or 折 follows):
    >>> [chinese_numbers_to_arabic(text) for text in ("一三八零零一二", "幺三八", "二〇二六年", "八零后", "九八年")]
    ['1380012', '138', '2026年', '80后', '98年']

    Decimals and percentages; other fractions stay:
    >>> [chinese_numbers_to_arabic(text) for text in ("三点五", "三点五万", "百分之三点五", "百分之百", "三分之一")]
    ['3.5', '35000', '3.5%', '100%', '三分之一']

    The time of day, where 点 is no decimal point:
    >>> [chinese_numbers_to_arabic(time) for time in ("下午三点半", "一点五十", "两点零五分", "晚上一点", "一点也不")]
    ['下午3点半', '1点50', '2点05分', '晚上1点', '一点也不']

    Money and lengths, and Arabic digits before 万 and 亿 (百 and 千 too, after one digit):
    >>> [chinese_numbers_to_arabic(price) for price in ("三块五", "一米七五", "3.5万", "2千")]
    ['3块5', '1米75', '35000', '2000']

    A single numeral, and 十, only before a measure word, 一 only before those that it does not make a word with:
    >>> [chinese_numbers_to_arabic(count) for count in ("三个月", "负五度", "一月一号", "一个人", "第一", "按一")]
    ['3个月', '负5度', '1月1号', '一个人', '第一', '按一']

    Words:
    >>> words = ("统一", "万一", "星期一", "十分满意", "一会儿", "三心二意", "千万不要", "一百一个")
    >>> [chinese_numbers_to_arabic(word) for word in words]
    ['统一', '万一', '星期一', '十分满意', '一会儿', '三心二意', '千万不要', '100一个']

    Args:
        text (`str`): Simplified Chinese in Unicode's NFKC form.

    Returns:
        `str`: The text, with numbers in Arabic digits.
    """
    return _NUMBER.sub(_arabic, text) if _NUMERAL.search(text) else text


def cardinal_value(numerals: str) -> int | None:
    """The value of a cardinal such as 一百二十万五千, or `None` if the numerals do not make one."""
    if numerals[0] in "零〇百千万亿" or not _CARDINAL.fullmatch(numerals):
        return None
    total = below_scale = digit = 0
    unit = 1  # of the numeral before
    for numeral in numerals:
        if numeral in SCALES:
            scale = SCALES[numeral]
            total += (below_scale + digit) * scale
            below_scale, digit, unit = 0, 0, scale
        elif numeral in UNITS:
            unit = UNITS[numeral]
            below_scale += (digit or 1) * unit
            digit = 0
        else:
            digit = VALUES[numeral]
            unit = unit if digit else 10  # after a zero, a last digit counts ones
    return total + below_scale + digit * max(unit // 10, 1)


def _arabic(match: re.Match) -> str:
    if match["word"]:
        return match[0]
    if match["one"]:
        return "1"
    if match["hour"]:
        return f"{_number(match['hour'])}点{_minute(match['minute'] or '')}"
    if match["large"]:
        large, small = _number(match["large"]), "".join(DIGITS[digit] for digit in match["small"])
        return match[0] if large is None else large + match["unit"] + small
    if match["arabic"]:
        return _scaled_digits(match["arabic"])
    return _run(match) if match["run"] else _percentage(match)


def _minute(numerals: str) -> str:
    if numerals[:1] in ("零", "〇"):
        return "0" + DIGITS[numerals[1]]
    return _number(numerals) if numerals else ""


def _number(numerals: str) -> str | None:
    """A number by itself: 三 -> 3, 一百二十三 -> 123, 一二三 -> 123, 三四 -> None."""
    if len(numerals) == 1 and numerals in VALUES:
        return str(VALUES[numerals])
    if all(numeral in DIGITS for numeral in numerals):
        spelled = len(numerals) > 2 or any(numeral in "零〇幺" for numeral in numerals)
        return "".join(DIGITS[numeral] for numeral in numerals) if spelled else None
    value = cardinal_value(numerals)
    return None if value is None else str(value)


def _scaled(number: str, scale: int) -> str:
    """3.5 times 10000 -> 35000, without binary fractions."""
    whole, _, decimals = number.partition(".")
    zeros = len(str(scale)) - 1
    whole = (whole + decimals[:zeros].ljust(zeros, "0")).lstrip("0") or "0"
    return f"{whole}.{decimals[zeros:]}" if len(decimals) > zeros else whole


def _scaled_digits(text: str) -> str:
    """3.5万 -> 35000, 1亿3000万 -> 130000000; units out of order stay as they are."""
    parts = re.findall("([0-9.]+)([亿万千百])", text)
    scales = [(UNITS | SCALES)[unit] for _, unit in parts]
    if len(parts) == 1:
        return _scaled(parts[0][0], scales[0])
    falling = all(larger > smaller for larger, smaller in zip(scales, scales[1:], strict=False))
    if "." in text or not falling:
        return text
    return str(sum(int(number) * scale for (number, _), scale in zip(parts, scales, strict=True)))


def _percentage(match: re.Match) -> str:
    if match["arabic_percent"]:
        return match["arabic_percent"] + "%"
    number = "100" if match["percent"] == "百" else _number(match["percent"])
    if number is None:
        return match[0]
    decimals = "".join(DIGITS[digit] for digit in match["percent_decimals"] or "")
    return f"{number}.{decimals}%" if decimals else f"{number}%"


def _run(match: re.Match) -> str:
    """A run of numerals, by what stands beside it in the text."""
    numerals, decimals, text = match["run"], match["decimals"], match.string
    before, after = text[max(match.start() - 1, 0) : match.start()], text[match.end() : match.end() + 3]
    number = _number(numerals)
    if before in ("几", "数"):
        return match[0]
    if decimals:
        if number is None or before == "第":
            return match[0]
        number += "." + "".join(DIGITS[digit] for digit in decimals)
        return _scaled(number, SCALES[match["scale"]]) if match["scale"] else number
    if len(numerals) == 1:
        measures = _MEASURE_OF_ONE if numerals == "一" and before != "月" else _MEASURE
        return number if number and before != "第" and measures.match(after) else numerals
    if len(numerals) == 2 and number is None and after[:1] in ("年", "折") and not _is_span(numerals):
        return "".join(DIGITS[numeral] for numeral in numerals)
    if numerals[-1] == "一" and numerals[-2] in "百千万亿" and after[:1] and after[0] in _AFTER_ONE + _ARTICLES:
        number = _number(numerals[:-1])
        return numerals if number is None else number + "一"
    return number or numerals


def _is_span(numerals: str) -> bool:
    """七八年 and 三五折 are from one to the other, 九八年 and 八五折 two digits."""
    return not set(numerals) <= DIGITS.keys() or VALUES[numerals[1]] - VALUES[numerals[0]] in (1, 2)
