"""How a relation that nobody worded reads in Chinese, from its label alone: who, where, when, how much, or what.

A label is a noun ("作者") but for the verbs listed here and what ends in 于. Its last characters say what is asked for:
"三国演义的作者是谁", "长江的长度是多少". A unit in brackets stands behind the number: "人口（万人）" makes
"广州的人口是1868万人". Traditional characters are looked up by their simplified forms, and said as they are written.
"""

from __future__ import annotations

import re

from kg.graph import Phrases
from kg.values import is_unit
from pipeline.text import simplified

_STATES = frozenset(
    "环绕 包含 包括 导致 引起 治疗 毗邻 流经 拥有 使用 需要 生产 注入 汇入 流入 连接 支持 依赖 研究 师从".split()
)
# What is over once it is done: said with 了.
_DEEDS = frozenset("创立 创办 创建 发明 发现 探访 改进 提出 撰写 创作 设计 建造 修建 主持修建 收购 击败 继承".split())
_BY_PEOPLE = re.compile(
    r"创立|创办|创建|发明|发现|改进|提出|撰写|创作|设计|修建|师从"
    r"|(?:毕业|就读|任教|任职|就职|供职|定居|师承|出生|生|卒|逝世|去世|葬|安葬)于"
)
_AT_A_PLACE = re.compile(
    r"流经|(?:位|坐落|发源|毕业|就读|任教|任职|就职|供职|定居|葬|安葬|分布|产|盛产|栖息|生活|流行|多见|活动)于"
)
_AT_A_TIME_OR_PLACE = re.compile(
    r"(?:出生|诞生|生|卒|逝世|去世|成立|创建|创立|创办|建|始建|建成|发布|发行|出版|举办)于"
)

# What a verb leads to, as a noun.
_BY_WAY_OF = dict(
    pair.split(":")
    for pair in """位于:所在的地方 坐落于:所在的地方 流经:流经的地方 发源于:的发源地 毕业于:毕业的学校 就读于:就读的学校
    注入:注入的水域 流入:流入的水域 汇入:汇入的水域 毗邻:毗邻的地方 创作:创作的作品 撰写:撰写的作品 修建:修建的工程
    主持修建:主持修建的工程 师从:的老师 创立:创立的机构 创办:创办的机构 发明:的发明 发现:的发现""".split()
)


def _ending(words: str) -> re.Pattern[str]:
    """These words where a label ends with them."""
    return re.compile(rf"(?:{words})\Z")


_WHO = _ending(
    r"者|(?<!机器)(?<!证)人|人物|[父母]亲|爸爸|妈妈|妻子|丈夫|配偶|儿子|女儿|[兄哥弟姐妹]{1,2}|祖[父母]|孙[子女]|好友|朋友|老师|导师"
    r"|学生|弟子|徒弟|师父|导演|编剧|主演|演员|歌手|作曲|作词|主编|编辑|译者|[校院会部省市县局社董事]长|总统|主席|首相|总理|总经理"
    r"|总监|总裁|书记|皇帝|国王|女王|教练|队员|球员|冠军|元首|君主|首席执行官"
)
_WHERE = _ending(
    r"(?:出生|生|所在|发源|诞生|原产|产|起源|安葬|葬|居住|发生|举[办行]|拍摄|目的|出发|首发|驻|注册|注入|办公)地|所在(?:国家|城市|省份|地区|区域)|地点|总部|首都|省会"
    r"|首府|籍贯|祖籍|故乡|家乡|位置|源头"
)
_YEAR = _ending(r"年份?|年代")
_TIME = _ending(
    r"首次(?:发布|上映|发行|播出|亮相)|日期|生日|诞辰|忌日|年月"
    r"|(?:通车|成立|上映|发布|开工|竣工|开馆|建成|创[立建办]|出生|去世|逝世|发行|出版|首播|首演|开业|开通|发射|开幕|闭幕|发生)时间"
)
_AMOUNT = _ending(
    r"人口|(?<![参函变])数|(?<![测音])量(?<!用法用量)|[总产市数]值|面积|体积|容积|[长宽高深厚温湿速密浓角精亮硬经纬]度|全长|总长|海拔"
    r"|半径|直径|周长|距离|间距|质量|体重|身高|[沸熔燃]点|周期|寿命|年龄|里程|时长|面宽|(?<![评])价|价格|票价|工资|收入|利润|[税额]"
    r"|金额|比例|率|概率|得分|分数|成本|电压|电流|电阻|功率"
)
# Relations of people, so that "谁的" is asked.
_OF_PEOPLE = re.compile(
    r"出生(?:地点?|年份?|日期|年月)|生日|诞辰|(?:逝世|去世)(?:地点?|年份?|日期)|国籍|民族|籍贯|祖籍|故乡|家乡|代表作品?|毕业院校|母校|学历"
    r"|学位|职业|职务|职称|性别|字|号|别号|笔名|艺名|谥号|庙号|[父母]亲|父母|妻子|丈夫|配偶|儿子|女儿|子女|[兄哥弟姐妹]{1,2}|祖[父母]"
    r"|孙[子女]|好友|朋友|老师|导师|弟子|徒弟|师父|主要成就|在位时间|生年|卒年"
)
_UNIT = re.compile(r"\s*[（(]\s*([^（）()]+?)\s*[）)]\Z")


def phrases_of(label: str) -> Phrases:
    """A relation's phrases, none of them empty."""
    if is_verb(label):
        return _as_a_verb(label)
    unit = _unit(label)
    noun = measure(label) if unit else label
    said = noun if re.search("[\u4e00-\u9fff]", noun) else _quoted(noun)
    whose = "谁" if of_people(label) else "哪个条目"
    return Phrases(
        label,
        statement=f"{{s}}的{said}是{{o}}{unit}",
        tail=f"{{s}}的{said}{_asked_for(noun, unit)}？",
        head=f"{whose}的{said}是{{o}}{unit}？",
        ref=f"{{s}}的{said}",
    )


def _quoted(label: str) -> str:
    """A foreign label as a noun: "located in" or "wrote" is none by itself, an abbreviation is."""
    return f"“{label}”" if label.isupper() else f"“{label}”一项"


def is_verb(label: str) -> bool:
    """Whether a label is said as a verb: one that is known, or what ends in 于."""
    plain = simplified(label)
    return plain in _STATES or plain in _DEEDS or plain.endswith("于")


def _as_a_verb(label: str) -> Phrases:
    plain = simplified(label)
    done = "了" if plain in _DEEDS else ""
    who = "谁" if _BY_PEOPLE.fullmatch(plain) else "什么"
    if plain.endswith("于") and _AT_A_TIME_OR_PLACE.fullmatch(plain):
        tail = f"“{{s}}{label}……”，其中应填什么？"  # 生于: when, or where?
    else:
        asked = "哪里" if _AT_A_PLACE.fullmatch(plain) or plain.endswith("位于") else "什么"
        tail = f"{{s}}{label}{done}{asked}？"
    ref = f"{{s}}{_BY_WAY_OF.get(plain, f'所{label}的对象')}"
    if plain.endswith("位于") and len(plain) > 2:  # 总部位于
        ref = f"{{s}}的{label[:-2]}所在地"
    return Phrases(label, f"{{s}}{label}{done}{{o}}", tail, f"{who}{label}{done}{{o}}？", ref)


def measure(label: str) -> str:
    """What is measured: a label without what stands in brackets behind it, "直径" of "直径（公里）"."""
    return _UNIT.sub("", label)


def _unit(label: str) -> str:
    found = _UNIT.search(label)
    return found[1] if found and is_unit(simplified(found[1])) else ""


def _ends(label: str, kind: re.Pattern[str]) -> bool:
    return kind.search(simplified(label)) is not None


def is_year(label: str) -> bool:
    """Whether a label asks for a year, so that 701 is said as 701年."""
    return _ends(label, _YEAR)


def is_time(label: str) -> bool:
    return is_year(label) or _ends(label, _TIME)


def of_people(label: str) -> bool:
    """Whether only people have this, so that it is asked for with 谁."""
    return _OF_PEOPLE.fullmatch(simplified(label)) is not None


def _asked_for(noun: str, unit: str) -> str:
    if unit:
        return f"是多少{unit}"
    for kind, question in (
        (_YEAR, "是哪一年"),
        (_TIME, "是什么时候"),
        (_AMOUNT, "是多少"),
        (_WHERE, "是哪里"),
        (_WHO, "是谁"),
    ):
        if _ends(noun, kind):
            return question
    return "是什么"


_COMPARED = (
    (_ending(r"长度|全长|总长|里程|周期|时长|寿命|时间"), "长", "短"),
    (
        _ending(
            r"高度|海拔|身高|[沸熔燃]点|温度|气温|湿度|浓度|密度|价格|[票售房单]价|率|分数|得分|指数|工资|收入|成本"
        ),
        "高",
        "低",
    ),
    (_ending(r"次序|顺序|名次|排名|位次"), "靠后", "靠前"),
    (_ending(r"人口|(?<!指)(?<!系)数|[产销含存流]量|数量|[总金]额"), "多", "少"),
)


def comparative(label: str, *, more: bool, dates: bool) -> str:
    """How more of it, or less, is said: 更长 of a length, 更晚 of a date, 更大 of most."""
    noun = measure(label)
    if dates or is_time(noun):
        return "更晚" if more else "更早"
    greater, smaller = next(((g, s) for kind, g, s in _COMPARED if _ends(noun, kind)), ("大", "小"))
    return f"更{greater if more else smaller}"
