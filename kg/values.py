"""Numbers, quantities and dates in English and Chinese text, as values that can be compared.

"6,371 km", "6371 公里" and "6.371 million metres" are one value; "20 July 1969" and "1969年7月20日" another.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# unit -> (dimension, factor to the dimension's base)
_UNITS: dict[str, tuple[str, float]] = {}


def _unit(dimension: str, factor: float, names: str) -> None:
    for name in names.split("|"):
        _UNITS[name] = (dimension, factor)


_unit("length", 1, "m|metre|metres|meter|meters|米")
_unit("length", 1000, "km|kilometre|kilometres|kilometer|kilometers|千米|公里")
_unit("length", 0.01, "cm|centimetre|centimetres|centimeter|centimeters|厘米")
_unit("length", 0.001, "mm|millimetre|millimetres|millimeter|millimeters|毫米")
_unit("length", 1609.344, "mi|mile|miles|英里")
_unit("length", 0.3048, "ft|foot|feet|英尺")
_unit("length", 149_597_870_700, "AU|天文单位")
_unit("mass", 0.45359237, "lb|lbs|pound|pounds|磅")
_unit("mass", 1, "kg|kilogram|kilograms|千克|公斤")
_unit("mass", 0.001, "g|gram|grams|克")
_unit("mass", 1e-6, "mg|milligram|milligrams|毫克")
_unit("mass", 1000, "tonne|tonnes|吨")
_unit("area", 1, "m²|square metres|square meters|平方米")
_unit("area", 1e6, "km²|square kilometres|square kilometers|平方公里|平方千米")
_unit("area", 1e4, "ha|hectare|hectares|公顷")
_unit("area", 1e4 / 15, "亩")
_unit("volume", 1, "L|litre|litres|liter|liters|升")
_unit("volume", 0.001, "mL|ml|毫升")
_unit("volume", 1000, "m³|立方米")
_unit("speed", 1, "m/s|米/秒|米每秒")
_unit("speed", 1 / 3.6, "km/h|公里/小时|千米/小时|公里每小时|千米每小时")
_unit("density", 1, "g/cm³|克/立方厘米|克每立方厘米")
_unit("density", 0.001, "kg/m³|千克/立方米|千克每立方米")
_unit("degrees Celsius", 1, "℃|°C|degrees Celsius|摄氏度")
_unit("people", 1, "people|inhabitants|人")
_unit("yuan", 1, "yuan|CNY|元|元人民币")
_unit("US dollars", 1, "dollars|US dollars|USD|美元")
_unit("year", 1, "year|years|yr|年|岁")
_unit("day", 1, "day|days|d|天|日")
_unit("day", 1 / 24, "hour|hours|h|小时|个小时")
_unit("day", 1 / 1440, "minute|minutes|min|分钟")
_unit("day", 1 / 86400, "second|seconds|秒")
_unit("day", 7, "week|weeks|周")
_unit("percent", 1, "%|percent|per cent|％")

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS)
_DATE = re.compile(
    r"(?P<y1>\d{4})-(?P<m1>\d{1,2})-(?P<d1>\d{1,2})(?![\d-])"
    r"|(?P<y2>\d{4})\s*年\s*(?P<m2>\d{1,2})\s*月\s*(?P<d2>\d{1,2})\s*[日号]"
    rf"|(?P<d3>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<m3>{_MONTH})\.?,?\s+(?P<y3>\d{{4}})"
    rf"|(?P<m4>{_MONTH})\.?\s+(?P<d4>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<y4>\d{{4}})",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?P<number>[-−]?(?:\d{1,3}(?:[,，]\d{3})+(?!\d)|\d+)(?:\.\d+)?)"
    r"(?:\s*[×x]\s*10\s*\^?\s*(?P<power>[-−]?\d+)|[eE](?P<exponent>[-+]?\d+))?"
    r"\s?(?P<scale>thousand|million|billion|trillion|万亿|万|亿)?"
    r"\s?(?P<unit>" + "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True)) + r")?(?![A-Za-z])",
)
_ABOUT = re.compile(r"(?:约为?|大约|about|approximately|around|circa|ca\.|[~≈])\s*(?=[-−\d])", re.IGNORECASE)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "万": 1e4, "亿": 1e8, "万亿": 1e12}
_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_HAN_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000}
# Traditional spellings, one character for one, so that places stay.
SAME_HAN = str.maketrans("萬億兩個點時鐘噸週歲號", "万亿两个点时钟吨周岁号")
_HAN_SCALES_ABOVE_TEN = {"百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_HAN_COUNT = re.compile(
    r"([一二三四五六七八九]?十[一二三四五六七八九]?|[零两二三四五六七八九一])(?=[个颗位种座项枚条名艘次样类部本首篇家所国地处])"
)
# 六万九千九百一十一公里, 一六一〇年: two and more characters with a unit behind them, so that 一 in a word is no number
_HAN_QUANTITY = re.compile(
    r"(?P<han>[零〇一二两三四五六七八九十百千万亿]{2,})(?P<unit>"
    + "|".join(sorted((unit for unit in _UNITS if not unit.isascii()), key=len, reverse=True))
    + ")"
)
_WORD = re.compile(rf"\b({'|'.join(sorted(_WORDS, key=len, reverse=True))})\b(?!-)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Value:
    """A number in its dimension's base unit ("" for no unit), or a date; `written` is the number before its unit."""

    number: float
    dimension: str
    written: float
    start: int = 0
    end: int = 0


def values_in(text: str, *, words: bool = False) -> list[Value]:
    """All dates, quantities and numbers in a text; with `words`, numbers written as words too."""
    found: list[Value] = []
    rest = text = text.translate(SAME_HAN)
    for match in _DATE.finditer(text):
        day = _day(match)
        found.append(Value(day, "date", day, match.start(), match.end()))
        rest = rest[: match.start()] + " " * (match.end() - match.start()) + rest[match.end() :]
    for match in _NUMBER.finditer(rest):
        if match.start() and rest[match.start() - 1].isascii() and rest[match.start() - 1].isalpha():
            continue  # the 7 of B7 is part of a name
        found.append(_quantity(match))
        rest = rest[: match.start()] + " " * (match.end() - match.start()) + rest[match.end() :]
    for match in _HAN_QUANTITY.finditer(rest):
        number, (dimension, factor) = han_number(match["han"]), _UNITS[match["unit"]]
        found.append(Value(number * factor, dimension, number, match.start(), match.end()))
    if words:
        written = [(float(_WORDS[m.group().lower()]), m) for m in _WORD.finditer(rest)]
        written += [(han_number(m.group(1)), m) for m in _HAN_COUNT.finditer(rest)]
        found += [Value(number, "", number, m.start(), m.end()) for number, m in written]
    return sorted(found, key=lambda value: value.start)


def value_of(text: str) -> Value | None:
    """The value that a whole text is, a leading "about" aside; None where it is something else."""
    stripped = _ABOUT.sub("", text.strip())
    found = values_in(stripped)
    if len(found) == 1 and found[0].start == 0 and not stripped[found[0].end :].strip(" ."):
        return found[0]
    return None


def is_unit(name: str) -> bool:
    """Whether a text is a unit, with a scale before it or without: "公里", "万人", 萬人."""
    name = name.translate(SAME_HAN)
    return name in _UNITS or re.sub(r"\A(?:万亿|百万|[千万亿])", "", name) in _UNITS


def unit_in(name: str) -> str:
    """The unit that a relation's name holds, as in "mean radius in kilometres" or "直径（公里）"; "" for none."""
    found = [word for word in re.findall(r"[A-Za-z%]+", name) if word in _UNITS and len(word) > 1]
    found += [unit for unit in _UNITS if not unit.isascii() and len(unit) > 1 and unit in name]
    bracketed = re.search(r"[（(]([^（）()]+)[）)]\Z", name)  # "人口（万人）"
    if bracketed and is_unit(bracketed[1]):
        return bracketed[1]
    return found[-1] if found else ""


def same_number(found: Value, wanted: Value) -> bool:
    """Whether a number in a text says the wanted one: equal after conversion, or as written where one has no unit."""
    if found.dimension == wanted.dimension:
        return math.isclose(found.number, wanted.number, rel_tol=1e-9)
    one_is_bare = "" in (found.dimension, wanted.dimension) and "date" not in (found.dimension, wanted.dimension)
    return one_is_bare and math.isclose(found.written, wanted.written, rel_tol=1e-9)


def _quantity(match: re.Match[str]) -> Value:
    number = float(re.sub("[,，]", "", match["number"]).replace("−", "-"))
    power = match["power"] or match["exponent"]
    if power:
        number *= 10.0 ** int(power.replace("−", "-"))
    number *= _SCALES.get(match["scale"] or "", 1.0)
    dimension, factor = _UNITS.get(match["unit"] or "", ("", 1.0))
    return Value(number * factor, dimension, number, match.start(), match.end())


def _day(match: re.Match[str]) -> float:
    for way in "1234":
        if match[f"y{way}"]:
            month = match[f"m{way}"]
            number = int(month) if month.isdecimal() else [m[:3] for m in _MONTHS].index(month[:3].lower()) + 1
            return int(match[f"y{way}"]) * 10000 + number * 100 + int(match[f"d{way}"])
    raise AssertionError("a date without a year")


def han_number(han: str) -> float:
    """二百零五万 as 2050000; 二〇二四, digit by digit, as 2024."""
    if len(han) > 1 and all(character in _HAN_DIGITS for character in han):
        return float("".join(str(_HAN_DIGITS[character]) for character in han))
    total = section = digit = 0.0
    for character in han:
        if character in _HAN_DIGITS:
            digit = _HAN_DIGITS[character]
        elif character in _HAN_SCALES:
            section += max(digit, 1) * _HAN_SCALES[character]
            digit = 0
        elif character == "万":
            total += (section + digit) * 1e4  # 一亿五千万
            section = digit = 0
        else:
            total = (total + section + digit) * 1e8  # 二万亿
            section = digit = 0
    if digit and han[-2:-1] in _HAN_SCALES_ABOVE_TEN:  # 二百五, 三万六
        digit *= _HAN_SCALES_ABOVE_TEN[han[-2]] / 10
    return total + section + digit
