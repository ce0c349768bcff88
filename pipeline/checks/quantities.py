"""Numbers and units in running text, English and Chinese, made comparable.

`quantities` finds them: "1,000", "five", "3.5 GB", "20%", "二十", "1.5万", "90 seconds". `agree` says whether one
states what another states: the same value, and, where both name a unit of one kind, the same amount of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kg.values import SAME_HAN, han_number


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written, its value, and its unit: (dimension, factor), None where it has none.

    `is_count` marks the small numbers in words ("two ways", 三种) that come of summing up and not of knowing.
    """

    text: str
    value: float
    unit: tuple[str, float] | None = None
    is_count: bool = False


def agree(wanted: Quantity, have: Quantity) -> bool:
    """Whether `have` in the source supports `wanted` in the answer."""
    if wanted.unit is None or have.unit is None:
        # a bare number takes its unit from what stands around it: `timeout=10.0`, "takes 10 seconds"
        return _same(wanted.value, have.value) or _same_share(wanted, have)
    if wanted.unit[0] != have.unit[0]:
        return False
    return _same(wanted.value * wanted.unit[1], have.value * have.unit[1])


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-300)


def _same_share(a: Quantity, b: Quantity) -> bool:
    """0.2 and 20%."""
    return any(
        share.unit is not None and share.unit[0] == "share" and other.unit is None
        and _same(share.value * share.unit[1], other.value)
        for share, other in ((a, b), (b, a))
    )  # fmt: skip


# ---------------------------------------------------------------- units

_UNITS: dict[str, tuple[str, float]] = {}


def _units(dimension: str, names: str) -> None:
    """Names of one dimension: "factor: name name | factor: name"."""
    for group in names.split("|"):
        factor, _, listed = group.partition(":")
        for name in listed.split():
            _UNITS[name.replace("_", " ")] = (dimension, float(factor))


_units(
    "time",
    "900: 刻钟 | 1e-9: ns nanosecond nanoseconds 纳秒 | 1e-6: µs μs microsecond microseconds 微秒"
    " | 1e-3: ms millisecond milliseconds 毫秒 | 1: s sec secs second seconds 秒 秒钟 | 60: min mins minute minutes"
    " 分钟 | 3600: h hr hrs hour hours 小时 个小时 | 86400: day days 天 日 | 604800: week weeks 周 星期 个星期"
    " | 2629800: month months 个月 | 31557600: year years yr yrs 年 | 315576000: decade decades"
    " | 3155760000: century centuries 世纪 个世纪",
)
_units(
    "bytes",
    "1: byte bytes 字节 B | 1e3: kB KB kilobyte kilobytes 千字节 | 1e6: MB megabyte megabytes 兆 兆字节"
    " | 1e9: GB gigabyte gigabytes G 吉字节 | 1e12: TB terabyte terabytes 太字节 | 1e15: PB petabyte petabytes"
    " | 1024: KiB | 1048576: MiB | 1073741824: GiB | 1099511627776: TiB",
)
_units("bits", "1: bit bits 比特 位 | 1e3: kbit kbps | 1e6: Mbit Mbps | 1e9: Gbit Gbps")
_units(
    "length",
    "1e-9: nm nanometre nanometres nanometer nanometers 纳米 | 1e-6: µm μm micron microns 微米"
    " | 1e-3: mm millimetre millimetres millimeter millimeters 毫米 | 1: m metre metres meter meters 米"
    " | 0.01: cm centimetre centimetres centimeter centimeters 厘米 公分"
    " | 1e3: km kilometre kilometres kilometer kilometers 公里 千米 | 0.0254: inch inches 英寸"
    " | 0.3048: foot feet ft 英尺 | 1609.344: mile miles 英里",
)
_units(
    "mass",
    "1e-6: mg milligram milligrams 毫克 | 1e-3: g gram grams 克 | 1: kg kilogram kilograms kilo kilos 公斤 千克 | 0.5:"
    " 斤 | 0.05: 两 | 1000: tonne tonnes ton tons 吨 | 0.45359237: lb lbs pound pounds 磅",
)
_units("area", "1: m² 平方米 | 1e6: km² 平方公里 平方千米 | 1e4: ha hectare hectares 公顷 | 666.6666666666666: 亩")
_units("speed", "1: m/s 米/秒 米每秒 | 0.2777777777777778: km/h 公里/小时 千米/小时 公里每小时 千米每小时")
_units("pressure", "1: Pa 帕 | 1e3: kPa 千帕 | 1e6: MPa 兆帕")
_units("share", "0.01: % ％ percent per_cent pct 个百分点 | 1e-3: ‰")
_units("frequency", "1: Hz hertz 赫 赫兹 | 1e3: kHz 千赫 千赫兹 | 1e6: MHz 兆赫 兆赫兹 | 1e9: GHz 吉赫 吉赫兹")
_units("power", "1: W watt watts 瓦 瓦特 | 1e3: kW kilowatt kilowatts 千瓦 | 1e6: MW megawatt megawatts 兆瓦")
_units("temperature", "1: °C ℃ degrees_Celsius 摄氏度 | 1.0001: °F degrees_Fahrenheit 华氏度 | 1.0002: K kelvin")
_units("volume", "1e-3: ml mL millilitre millilitres milliliter milliliters 毫升 | 1: l litre litres liter liters 升")
_units("volts", "1: V volt volts 伏 伏特 | 1e-3: mV")
_units("US dollars", "1: $ USD dollar dollars 美元")
_units("euros", "1: € EUR euro euros 欧元")
_units("yuan", "1: ¥ ￥ CNY RMB yuan 元 人民币 块钱")
_units("pounds sterling", "1: £ GBP")

# ---------------------------------------------------------------- numbers

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {w: value for value, w in enumerate(_ONES)} | {w: 10 * value for value, w in enumerate(_TENS, 2)}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "dozen": 12.0}
_SHORT_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "bn": 1e9}
_HAN_SHORT_SCALES = {"百": 1e2, "千": 1e3, "万": 1e4, "十万": 1e5, "百万": 1e6, "千万": 1e7, "亿": 1e8, "十亿": 1e9}
_HAN_SHORT_SCALES |= {"百亿": 1e10, "千亿": 1e11, "万亿": 1e12}
_SHORT_SCALES |= _HAN_SHORT_SCALES
SMALL = 10  # a number in words up to here, without a unit, counts what the text lists

_number_word = "|".join(sorted((*_WORDS, *_SCALES), key=len, reverse=True))
_unit_names = "|".join(re.escape(name) for name in sorted(_UNITS, key=len, reverse=True) if name not in "$€£¥￥")
_han_scales = "|".join(sorted(_HAN_SHORT_SCALES.keys() - {"百"}, key=len, reverse=True))
_DIGITS = re.compile(
    r"(?P<money>[$€£¥￥]\s?)?"
    r"(?<![A-Za-z0-9_.])(?<![A-Za-z][/-])(?P<sign>[-−](?=\d))?(?P<digits>\d{1,3}(?:[,，]\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)"
    rf"(?:\s?(?P<scale>{_han_scales})(?:(?P<more>\d{{1,4}})(?P<more_scale>[万千百]))?|(?P<short>bn|[kKMB])(?![A-Za-z])|\s(?P<long>hundred|thousand|million|billion|trillion)\b)?"
    rf"(?:[\s-]?(?P<unit>{_unit_names})(?![A-Za-z]))?"
)
_SPELLED = re.compile(
    rf"\b(?P<words>(?:{_number_word})(?:(?:[\s-]|\sand\s)(?:{_number_word}))*)\b(?:[\s-](?P<unit>{_unit_names})(?![A-Za-z]))?",
    re.IGNORECASE,
)
_digit = "零〇一二两三四五六七八九"
_rest = r"(?:[零〇一二三四五六七八九十百千万亿]|两(?=[百千万亿]))*"  # not the two 两 of 十六两
_han = rf"[{_digit}十]{_rest}(?:点[{_digit}]+(?![{_digit}十百千分]))?"
_HAN_NUMBER = re.compile(rf"(?P<below>零下)?(?P<han>{_han})(?P<unit>{_unit_names})?")
_number = rf"\d+(?:\.\d+)?|{_han}"
_HAN_SHARE = re.compile(rf"(?P<of>百|千|万)分之(?P<share>{_number})")
_TENTHS = re.compile(
    rf"(?<![{_digit}十\d])(?P<tenths>[一二两三四五六七八九1-9])成(?P<more>半|[一二三四五六七八九])?(?![不为立员果功长本份就分语年交人熟品型套])"
)
_FRACTION = re.compile(rf"(?P<below>{_number})分之(?P<above>{_number})")
_SLASHED = re.compile(r"(?<![\w./-])(?P<above>\d{1,3})/(?P<below>[1-9]\d{0,2})(?![\w./-])")
# 三五天, 七八个: either of the two
_EITHER = re.compile(
    rf"(?<![{_digit}十百千万亿])(?P<one>一两|两三|三四|三五|四五|五六|六七|七八|八九)(?![{_digit}十百千万亿])(?P<unit>{_unit_names})?"
)
_AND_A_HALF = re.compile(
    rf"(?P<whole>{_number})?个?半(?:个)?(?P<unit>{_unit_names})|(?P<before>{_number})(?P<its_unit>{_unit_names})半(?![天年月日夜路])"
)
_EACH = re.compile(rf"每(?P<unit>{_unit_names})")
_FINANCIAL = re.compile("[壹贰貳叁參肆伍陆陸柒捌玖拾佰仟万亿零]{2,}")  # 伍万陆仟; not 参 or 陆 in a word
_PLAIN_HAN = str.maketrans("壹贰貳叁參肆伍陆陸柒捌玖拾佰仟", "一二二三三四五六六七八九十百千")
# 一 and its kin in words that are no numbers.
_NO_NUMBER = re.compile(
    r"(?<![十百千万亿零〇])一(?:些|般|样|定|起|直|旦|致|切|种|个|下|边|方面|时|同|律|次性|系列|步|并|部分|点|度|体|味|再|向|共|流|生|家|门|线)"
    r"|(?:唯|统|之|同|单|逐|进)一(?![十百千万])|第一(?![十百千万])|(?<![一二三四五六七八九十])万一|(?<![一二三四五六七八九两几])(?:十分(?!钟|之)|百度)"
    r"|(?<![一二两三四五六七八九十几数百])千万|三番|四处|两者|两端|[一两]者|五一(?=劳动|假期|黄金)|三国演义|四川|一一(?=对应|列|说)"
)
_NUMBERING = re.compile(r"^\s*(?:\d{1,2}[.)、]|[（(]\d{1,2}[）)])\s*(?!\d)", re.MULTILINE)
NUMBER_WORDS = frozenset((*_WORDS, *_SCALES))


def quantities(text: str) -> Iterator[Quantity]:
    """Every number of a text with its unit; those inside words (utf8, Llama2) are names' business."""
    text = _NUMBERING.sub("", text.translate(SAME_HAN))  # a list's own
    text = _FINANCIAL.sub(lambda found: found.group().translate(_PLAIN_HAN), text)
    for hint, pattern, read in _IN_WORDS:
        if hint in text:
            for found in pattern.finditer(text):
                yield from read(found)
            text = pattern.sub(" ", text)
    for found in _SLASHED.finditer(text):  # its numbers are read as such, too
        yield Quantity(found.group(), float(found["above"]) / float(found["below"]))
    text = re.sub(r"零下(?=\s?\d)", "-", text)
    for found in _DIGITS.finditer(text):
        yield _from_digits(found)
    text = _DIGITS.sub(" ", text)  # so that 1.5千克 is not read again as 千克
    for found in _SPELLED.finditer(text):
        value = _spelled_value(found["words"])
        unit = _unit(found["unit"])
        yield Quantity(found.group(), value, unit, is_count=unit is None and value <= SMALL)
    for found in _HAN_NUMBER.finditer(_NO_NUMBER.sub(lambda gone: "　" * len(gone.group()), text)):
        value = _value(found["han"]) * (-1 if found["below"] else 1)
        unit = None if found["unit"] == "位" and value <= SMALL else _unit(found["unit"])  # 一位患者: no bit
        yield Quantity(
            found.group(), value, unit, is_count=unit is None and value <= SMALL and "点" not in found["han"]
        )


def _value(number: str) -> float:
    """Of a number in digits, or in Chinese, with its decimals: 零点三七."""
    if number[0].isdigit():
        return float(number)
    whole, _, decimals = number.partition("点")
    return han_number(whole) + (han_number("零" + decimals) / 10 ** len(decimals) if decimals else 0.0)


def _share(found: re.Match[str]) -> Iterator[Quantity]:
    yield Quantity(found.group(), _value(found["share"]), ("share", {"百": 1e-2, "千": 1e-3, "万": 1e-4}[found["of"]]))


def _tenths(found: re.Match[str]) -> Iterator[Quantity]:
    """两成 as 20 %, 三成五 as 35 %, 三成半 likewise."""
    more = found["more"]
    rest = 0.0 if more is None else 5.0 if more == "半" else _value(more)
    yield Quantity(found.group(), 10 * _value(found["tenths"]) + rest, ("share", 0.01))


def _fraction(found: re.Match[str]) -> Iterator[Quantity]:
    """三分之一; and the two it is made of, for an answer that has it as 1/3."""
    above, below = _value(found["above"]), _value(found["below"])
    yield Quantity(found.group(), above / (below or math.inf))
    yield from (Quantity(found.group(), value, ("part", 1.0), is_count=True) for value in (above, below))


def _and_a_half(found: re.Match[str]) -> Iterator[Quantity]:
    """半小时, 一个半小时, 两年半."""
    whole = found["whole"] or found["before"]
    yield Quantity(found.group(), (_value(whole) if whole else 0.0) + 0.5, _unit(found["unit"] or found["its_unit"]))


def _either(found: re.Match[str]) -> Iterator[Quantity]:
    """三五天: three, or five."""
    yield from (Quantity(found.group(), han_number(digit), _unit(found["unit"])) for digit in found["one"])


def _each(found: re.Match[str]) -> Iterator[Quantity]:
    """每天, for an answer that has it as 一天."""
    yield Quantity(found.group(), 1.0, _unit(found["unit"]), is_count=True)


# What is read before plain numbers, and the character without which there is none.
_IN_WORDS = (
    ("分之", _HAN_SHARE, _share),
    ("成", _TENTHS, _tenths),
    ("分之", _FRACTION, _fraction),
    ("半", _AND_A_HALF, _and_a_half),
    ("每", _EACH, _each),
    ("", _EITHER, _either),
)


def _from_digits(found: re.Match[str]) -> Quantity:
    value = float(found["digits"].replace(",", "").replace("，", "")) * (-1 if found["sign"] else 1)
    unit_name = found["unit"]
    scale = found["scale"] or found["short"]
    if scale:
        value *= _SHORT_SCALES[scale]
        if found["more"]:  # 2亿5000万
            value += float(found["more"]) * _SHORT_SCALES[found["more_scale"]]
    elif found["long"]:
        value *= _SCALES[found["long"].lower()]
    unit = _UNITS[found["money"].strip()] if found["money"] else _unit(unit_name)
    return Quantity(found.group().strip(), value, unit)


def is_unit(name: str) -> bool:
    """Whether a word is a unit's name or sign."""
    return _unit(name) is not None


def _unit(name: str | None) -> tuple[str, float] | None:
    if name is None:
        return None
    return _UNITS.get(name) or _UNITS.get(name.lower())


def _spelled_value(words: str) -> float:
    """ "two hundred and five thousand" as 205000."""
    total = current = 0.0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in _WORDS:
            current += _WORDS[word]
        elif word in ("hundred", "dozen"):
            current = max(current, 1) * _SCALES[word]
        elif word in _SCALES:
            total += max(current, 1) * _SCALES[word]
            current = 0.0
    return total + current
