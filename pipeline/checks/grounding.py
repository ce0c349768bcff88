"""Whether an answer rests on its source: quotes are found in it, and no number, name or unit is the model's own.

Nothing here asks a model. `locate` finds a quote exactly, or after white space and punctuation are normalised.
`unsupported` lists what the answer states and the source lacks. What the same fact looks like in other words is
allowed for: 1,000 and 1000, five and 5, 20% and 20 percent, 3 GB and 3GB, 1万 and 10000, 90 seconds and 1.5 minutes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from pipeline.checks.quantities import NUMBER_WORDS, Quantity, agree, is_unit, quantities
from pipeline.text import language_of, simplified, terms

SHORTEST_QUOTE = 6  # letters and digits; a Han character counts as two: less than that is found anywhere
_SAME = str.maketrans("‘’‚‛“”„‟‐‑‒–—−", "''''\"\"\"\"------")


def locate(quote: str, text: str) -> tuple[int, int] | None:
    """Where the text holds the quote: (start, end), or None. Of several places the first."""
    quote = quote.strip()
    letters = sum(2 if _is_han(character) else 1 for character in quote if character.isalnum())
    if letters < SHORTEST_QUOTE:
        return None
    at = text.find(quote)
    if at >= 0:
        return at, at + len(quote)
    wanted, _ = _skeleton(quote)
    have, places = _skeleton(text)
    at = have.find(wanted)
    if at < 0:
        return None
    start, end = places[at], places[at + len(wanted) - 1] + 1
    return start, _with_closing_stop(text, end) if quote[-1:] in ".!?。！？" else end


def quotes_in(said: str, text: str) -> list[tuple[int, int]]:
    """Where the text holds what a model gave as a quote, which may leave things out by an ellipsis."""
    whole = locate(said, text)
    if whole is not None:
        return [whole]
    parts = [part for part in re.split(r"\s*(?:\[?\.{3,}\]?|\[?…+\]?)\s*", said) if part.strip()]
    found = [locate(part, text) for part in parts] if len(parts) > 1 else [None]
    return [place for place in found if place is not None] if None not in found else []


def _skeleton(text: str) -> tuple[str, list[int]]:
    """The text's letters, digits and signs, each with its place. A point between digits stays: 1.5 is not 15."""
    kept, places = [], []
    text = simplified(text)  # a model may copy 閥門 as 阀门
    for at, character in enumerate(text):
        for plain in unicodedata.normalize("NFKC", character).translate(_SAME):
            if plain.isalnum() or _is_sign(plain) or _is_point(text, at):
                kept.append(plain.casefold())
                places.append(at)
    return "".join(kept), places


def _is_sign(character: str) -> bool:
    return unicodedata.category(character)[0] == "S" and character not in "`^|~"


def _is_point(text: str, at: int) -> bool:
    return text[at] in ".,-" and text[at + 1 : at + 2].isdigit() and (text[at] == "-" or text[at - 1 : at].isdigit())


def _with_closing_stop(text: str, end: int) -> int:
    return end + 1 if text[end : end + 1] in tuple(".!?。！？") else end


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


# ---------------------------------------------------------------- what two texts share

_FEWEST_TERMS = 3  # of an answer: "yes", or a number in words, may share none with its quote


def shares_no_word(answer: str, quoted: str) -> bool:
    """Whether an answer of some length has no word in common with what it quotes, nor a Han character."""
    said = terms(answer)
    shared = said & terms(quoted) or set(filter(_is_han, simplified(answer))) & set(simplified(quoted))
    return len(said) >= _FEWEST_TERMS and not shared


def share_of_terms(question: str, passage: str) -> float:
    """How many of a question's terms the passage holds; 1 where it has none.

    The terms of Chinese are pairs of characters and change with every rewording, so that a single one is all.
    """
    asked = terms(question)
    held = asked & terms(passage)
    if not asked or (held and language_of(question) == "zh"):
        return 1.0
    return len(held) / len(asked)


# ---------------------------------------------------------------- what the source lacks


def unsupported(answer: str, source: str) -> list[str]:
    """Every number, unit, name and address of the answer that the source lacks, in the order of their kinds."""
    answer, source = simplified(answer), simplified(source)
    have = list(quantities(source))
    wrong = [quantity.text for quantity in quantities(answer) if not _is_supported(quantity, have)]
    flat = _flat(source)
    wrong += [name for name in names(answer, flat) if not _holds_name(flat, name)]
    return list(dict.fromkeys(wrong))


def _is_supported(wanted: Quantity, have: list[Quantity]) -> bool:
    return wanted.is_count or any(agree(wanted, quantity) for quantity in have)


def _flat(text: str) -> str:
    """Lower case, marks gone, so that `connect_timeout`, "Connect Timeout" and ConnectTimeout hold the same letters."""
    return " ".join(re.findall(r"[\w.+#/@:%-]+", unicodedata.normalize("NFKC", text).casefold()))


def _holds_name(flat_source: str, name: str) -> bool:
    wanted = _flat(name).strip(".-/:%")
    stems = [wanted, *(wanted.removesuffix(end) for end in ("'s", "s", "es", "ed", "ing") if len(wanted) > 5)]
    if any(stem in flat_source for stem in stems):
        return True
    letters = re.sub(r"[\W_]", "", wanted)
    return len(letters) > 3 and letters in re.sub(r"[\W_]", "", flat_source)


# ---------------------------------------------------------------- names

_LETTER = r"[A-Za-z0-9_\u00c0-\u024f]"
_WORD = re.compile(rf"(?!\d){_LETTER}+(?:[.'’/+#&-]?{_LETTER}+)*[+#]*")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>()\"'“”，。；、）]+|[\w.+-]+@[\w-]+\.[\w.]+", re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:^|[.!?。！？:：;；]\s*|\n\s*(?:[-*•]|\d+[.)])?\s*)[\"'“‘(（*`]*$")
_ORDINARY_END = re.compile(
    r"(?:ing|ings|tion|tions|sion|sions|ment|ments|ness|ity|ities|ly|ers|able|ible|ally|ances?|ences?|ous|ful|less|ed)$"
)
# Words that open a sentence with a capital and are no names.
_OPENERS = frozenset(
    """a about above according across after against all along also alternatively although always among an and another
    any anyone anything are around as ask at avoid back based be because become before behind being below besides best
    better between beyond both break bring briefly build but by call can cannot care carry case cases change check
    choose clear close code come common compare compared consider could create current data default define despite did
    different do does down due during each early easy either else enable end enough ensure even every everyone
    everything examples example except few finally find first fix follow for form found four five from full general
    generally get give given go good great had half has have he help hence her here high his how however i if imagine
    important in indeed initially inside instead internally into is it its just keep key know large last later lastly
    learn less let likewise limit long look low made main make makes many may maybe mean means meanwhile measure might
    model models modern more moreover most much must my name near need neither never new next no none nor not note
    nothing now of off often old on once one only open or other others otherwise our out over overall own part pass
    people perhaps place please plus point previously prior put rather read remember result results return right run
    same save say second see select send set several she short should show similarly simple simply since six small so
    some someone something sometimes soon specifically start step still stop store such sure take tell ten than thanks
    that the their them then there therefore these they thing things third this those though three through thus time to
    today together too top try turn two type under unless unlike until up upon us use used useful user users uses
    usually value values very via wait was way we well were what whatever when whenever where whereas whether which
    while who whoever whole whose why will with within without work works would write yes yet you your zero
    monday tuesday wednesday thursday friday saturday sunday""".split()
)


def names(answer: str, flat_source: str = "") -> Iterator[str]:
    """Names in the answer: addresses, capitalised and mixed-case words, code, words with digits, Chinese names."""
    without_urls = answer
    for found in _URL.finditer(answer):
        yield found.group().rstrip(".,;")
        without_urls = without_urls.replace(found.group(), " " * len(found.group()), 1)
    for found in _WORD.finditer(without_urls):
        word = found.group().strip("'’-/&.")
        before, after = without_urls[: found.start()], without_urls[found.end() :]
        if _is_name(word, before, after, flat_source):
            yield word
    yield from _chinese_names(without_urls)


def _is_name(word: str, before: str, after: str, flat_source: str) -> bool:
    if before[-1:].isdigit() and is_unit(word):
        return False  # 16GB: a quantity, and looked at as one
    if _MADE_UP.search(word):
        return True
    if not word[0].isupper() or len(word) < 2:
        return False
    base = re.sub(r"['’](?:s|re|ll|ve|d|t|m)$", "", word.lower()).removesuffix("n't")
    if base in _OPENERS or base in NUMBER_WORDS:
        return False
    if not _SENTENCE_START.search(before):
        return True
    return not (_ORDINARY_END.search(base) or _reads_as_a_noun(base, after))


# CamelCase, QZNet, HTTP, GPT4, a_b, httpx.get, C++
_MADE_UP = re.compile(r"[a-z][A-Z]|[A-Z]{2}|[A-Za-z]\d|_|[A-Za-z]\.[A-Za-z]{2}|[+#]$")
_VERB_AFTER_A_NAME = re.compile(
    r"\s+(?:[A-Z]|was\b|has\b|is\b|had\b|says?\b|said\b|argues?\b|wrote\b|made\b|built\b|found\b|gave\b|led\b|\w+ed\b)"
)


def _reads_as_a_noun(base: str, after: str) -> bool:
    """A capitalised first word is a name only where what follows reads like what a name does."""
    return base.endswith("s") or not _VERB_AFTER_A_NAME.match(after)


_SURNAMES = (
    "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜戚谢邹喻柏窦章苏潘葛奚范彭郎鲁韦马苗方俞任袁柳"
    "鲍史唐费廉岑薛雷贺倪汤滕殷罗毕郝邬安常乐于时傅皮卞齐康伍余元顾孟黄穆萧尹姚邵汪祁毛禹狄米贝明臧计成戴宋茅庞熊纪"
    "舒屈项祝董梁杜阮蓝闵席季麻强贾路娄危江童颜郭梅盛林刁钟徐邱骆高夏蔡田樊胡凌霍虞万支柯管卢莫房裘缪干解应宗丁宣邓"
    "郁单杭洪包诸左石崔吉龚程邢裴陆荣翁荀羊甄曲封储靳段富巫乌焦巴牧隗山谷车侯宓蓬全班仰秋仲伊宫宁仇栾甘厉祖武符刘景"
    "詹束龙叶幸司韶黎薄印宿白怀蒲从索赖卓池乔胥能苍双闻莘党翟谭贡劳姬申扶堵冉宰雍桑桂牛寿通边扈燕冀尚农温别庄晏柴瞿"
    "阎充慕连茹习艾鱼容向古易慎戈廖庾终暨居衡步都耿满弘匡国文寇广禄阙东欧殳沃利蔚越夔隆师巩厍聂晁勾敖融冷訾辛阚那简"
)
_TITLED = re.compile(
    rf"(?:(?<=[，。、；：“《（\s由和与及])|^|(?<=据|是|被|为|请|在))"
    rf"((?:欧阳|司马|诸葛|上官|[{_SURNAMES}])[\u4e00-\u9fff]{{1,2}}?)"
    r"(?=教授|博士|先生|女士|院士|老师|工程师|研究员|等人|认为|提出|表示|指出|发明|发现了|主持)"
)
_NO_PERSON = frozenset(  # begin with what may be a surname
    """高级 高中 高校 高等 安全 成为 成功 成本 万一 于是 于此 明白 明确 时间 时候 任何 任课 方法 方面 金融 经过 那些
    那么 那位 全体 全部 全国 相关 常务 常见 常常 解决 应该 应当 容易 通过 向来 从而 从事 石油 白领 能够 能否 温度
    单位 双方 左右 黄金 安排 平均 水平 马上 习惯 古代 广大 文学 国家 国内 国外 连续 项目 柴油 农业 管理 经济 宁可
    乐观 计算 计划 关于 关键 文中 曾经 谢谢 终于 步骤 强大 路过 车辆 空间 丰富 夏季 游客 何种 班主 和 家长 东方
    后来 公司""".split()
)
_ORGANISED = re.compile(
    r"[\u4e00-\u9fff]{2}(?<![到去至来往进入住在诊回经送给让请问和或与及等做有过的了是为其种次个家被由从向名科于诉要地锁上写某])"
    r"(?:大学|学院|研究院|研究所|公司|集团|银行|医院|出版社|委员会|协会|基金会)"
    r"|(?:河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西|甘肃|青海|台湾)省"
    r"|[\u4e00-\u9fff]{2}(?<![城超上股门夜集都早楼菜闹黑牛熊入退罢省本全各该外开收救辖级大小])市(?![场面值价民区级政])"
    r"|[\u4e00-\u9fff]{2}(?<![各全该本外郡])县(?!级)"
)
# What stands before 公司, 医院 and the like, and makes no name of it.
_GENERIC = re.compile(
    r"这家|[该那某各每本其他她它]|一家|两家|几家|多家|许多|很多|部分|多数|其他|其它|所在|我们|个人|大型|中型|小型|[的与和或及在于由向给去到从被把为是有让对跟]"
    r"|保险|证券|商业|中央|投资|金融|物业|咨询|科技|联网|软件|硬件|上市|[母子分总]|股份|有限|责任|跨国|贸易|外贸|物流|快递|航空|电力|能源|医药|制药|建筑"
    r"|装修|家政|旅游|广告|传媒|游戏|电商|芯片|汽车|初创|创业|私营|国有|民营|外资|合资|以[上下]|专[业科]|综合|社区|人民|公立|私立|民办|[当本]地|附近"
    r"|[一二三]级|甲等|儿童|妇产|口腔|眼科|精神|高等|职业|技术|师范|工程|居民|业主|村民|伦理|评审|专家|学术|管理|监督|行业|消费|慈善|外国|境外"
    r"|海外|国[内外]|地方|各大|主要|知名|著名|相关|有关|任何|常务|重点|普通|农村|城市|中小|理工科|网络|通信|运营|生产|制造|销售|服务|公益|校级|国家"
)
_BOOK = re.compile(r"《([^》]{1,40})》")


def _chinese_names(answer: str) -> Iterator[str]:
    yield from (found.group(1) for found in _BOOK.finditer(answer))
    yield from (found.group(1) for found in _TITLED.finditer(answer) if found.group(1)[:2] not in _NO_PERSON)
    for found in _ORGANISED.finditer(answer):
        if not _GENERIC.match(found.group()) and "的" not in found.group():
            yield found.group()
