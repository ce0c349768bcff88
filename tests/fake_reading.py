"""How the fake server reads a passage: it quotes a sentence, and answers with a paraphrase or with something invented.

The passage stands between the two marked lines that the project's prompts use. A paraphrase says the same in other
words: numbers spelled or written with a comma, per cent for %, other connectives, clauses turned round. An invention
is a number, a name or a unit that the passage lacks; `Reading.planted` says which kind it was, for the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
PASSAGE = re.compile(r"^-----BEGIN (\w+)-----\n(.*)\n-----END \1-----$", re.DOTALL | re.MULTILINE)
SENTENCE = re.compile(r"[^.!?。！？\n]+(?:\.(?=\w)[^.!?。！？\n]+)*[.!?。！？]?")
HAN = re.compile("[\u4e00-\u9fff]")

NAMES_EN = """Quillfeather|Professor Ottoline Brask|Zelmora|Brantwick Laboratories|Okonkwo|the Verdane Institute|
    Marrowby|Tessaly Corp|FluxWeave|QRZP|Ines Calderwick|Nordholm University|PyGlimmer|
    the Kestrel Foundation""".replace("\n", "")
NAMES_ZH = "欧阳慕白教授|青岚大学|云杉研究院|GlimFlow|《星河手记》|QZNet|沈砚秋博士|白鹭实验室|松涛出版社|FluxWeave"
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
UNITS_EN = "seconds minutes hours days weeks years MB GB km metres kilograms percent dollars".split()
UNITS_ZH = "秒 分钟 小时 天 年 公里 公斤 兆字节 美元".split()
POINTING = "this these that the above following given provided text passage article document section page and".split()
ASK_EN = """What is known about …?|How does … come about?|Why does … matter?|When is … of use?|What follows from …?|
    Who needs …?|Where does … help?|Which kinds of … are there?""".replace("\n", "")
ASK_ZH = "…是怎么回事？|为什么要谈…？|…有什么用？|…的结果是什么？|谁需要…？|什么时候会遇到…？"
SAME_EN = {
    "because": "since", "however": "but", "allows": "lets", "use": "employ", "must": "has to", "also": "as well",
    "large": "big", "show": "display", "often": "frequently", "example": "instance", "will": "is going to",
}  # fmt: skip
SAME_ZH = {
    "因此": "所以", "使用": "采用", "但是": "不过", "可以": "能够", "如果": "倘若", "通过": "借助", "进行": "开展",
    "非常": "十分", "以及": "还有", "由于": "因为", "目前": "现在", "同时": "与此同时", "方法": "办法", "大量": "许多",
}  # fmt: skip


@dataclass
class Reading:
    """One quote and answer. `planted` is "number", "name" or "unit" where the answer holds something invented."""

    quotes: list[str]
    answer: str
    planted: str | None = None


class Reader:
    """Reads as a model does. `chance` and `pick` are the writer's, so the same request gives the same answer."""

    def __init__(self, source: str, chance: Callable[[float], bool], pick: Callable[[Sequence[str]], str]) -> None:
        found = PASSAGE.search(source)
        self.passage = found.group(2) if found else source
        self.chance, self.pick = chance, pick

    def sentence(self) -> str:
        body = self.passage.partition("\n\n")[2] or self.passage  # without the line of headings
        sentences = [text.strip() for text in SENTENCE.findall(body)]
        long_enough = [text for text in sentences if len(HAN.findall(text)) > 7 or len(text.split()) > 4]
        return self.pick(long_enough or sentences or [self.passage])

    def question(self) -> str:
        """A question about a few words of the passage that follow each other."""
        said = self.sentence()
        han = len(HAN.findall(said)) > len(said) / 5
        words = HAN.findall(said) if han else [w for w in re.findall(r"[^\W_]{3,}", said) if w.lower() not in POINTING]
        start = int(self.pick("012345")) % max(1, len(words) - 2)
        phrase = ("" if han else " ").join(words[start : start + (7 if han else 3)]) or said
        return self.pick((ASK_ZH if han else ASK_EN).split("|")).strip().replace("…", phrase)

    def read(self, plant: float) -> Reading:
        said = self.sentence()
        han = len(HAN.findall(said)) > len(said) / 5
        answer = self.in_other_words(said, han)
        planted = None
        if self.chance(plant):
            planted, invention = self.invention(han)
            answer = f"{answer}{invention}" if han else f"{answer} {invention}"
        return Reading([self.as_copied(said)], answer, planted)

    def call(self, plant: float) -> tuple[str, str | None]:
        """The call of an API description, or one that does not keep to it."""
        found = re.search(r"^api_call: (.*)$", self.passage, re.MULTILINE)
        call = found.group(1) if found else "nothing()"
        if not self.chance(plant):
            return call, None
        name, _, rest = call.partition("(")
        wrong = [f"{name}_now({rest}", f"{call.rstrip(')')}, speed='fast')", f"{name}()", f"the call is {call}"]
        return self.pick(wrong), "call"

    def as_copied(self, text: str) -> str:
        """A quote as models copy it: now and then with other white space, quotation marks or without its stop."""
        if self.chance(0.2):
            text = " ".join(text.split())
        if self.chance(0.2):
            text = text.replace('"', "”").replace("'", "’").replace("，", ",")
        return text.rstrip(".。") if self.chance(0.2) else text

    def in_other_words(self, text: str, han: bool) -> str:
        """The same statement, said differently."""
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|\*\*|`+|^\s*(?:[-*#>]+|\d+\.)\s+", r"\1", text).strip()
        if self.chance(0.4):
            text = re.sub(r"(?<![\w.,:/-])([2-9]|1[0-2])(?![\w.,:/%-])(?=\s[a-z])", lambda n: NUMBERS[int(n[1])], text)
        if self.chance(0.4):
            text = re.sub(r"(?<![\w.,/-])([1-9])(\d{3})(?![\w.,/年-])", r"\1,\2", text)
        if self.chance(0.4):
            text = text if han else text.replace("%", " percent")
        for word, other in (SAME_ZH if han else SAME_EN).items():
            if self.chance(0.6):
                text = text.replace(word, other) if han else re.sub(rf"(?<![\w./]){word}(?![\w./])", other, text)
        comma = "，" if han else ", "
        head, found, tail = text.rstrip(".。").partition(comma)
        if found and len(tail) > 12 and self.chance(0.3):
            text = (
                f"{tail[0].upper()}{tail[1:]}{comma}{head[:1].lower() if head[1:2].islower() else head[:1]}{head[1:]}"
            )
        if self.chance(0.3):
            opening = self.pick("简单说，|总的来说，|要点有两个：".split("|") if han else OPENINGS)
            text = f"{opening}{text[:1].lower() if text[1:2].islower() else text[:1]}{text[1:]}"
        return text.rstrip(".。") + ("。" if han else ".")

    def invention(self, han: bool) -> tuple[str, str]:
        kind = self.pick(["number", "name", "unit"])
        if kind == "unit":
            kind, quantity = self.wrong_unit(han)
            return kind, (f"一共是{quantity}。" if han else f"It comes to {quantity}.")
        if kind == "name":
            name = self.pick((NAMES_ZH if han else NAMES_EN).split("|")).strip()
            if han:
                return kind, self.pick([f"这由{name}提出。", f"{name}首先采用。", f"它来自{name}。"])
            start = name[0].upper() + name[1:]
            return kind, self.pick([f"{start} introduced it.", f"It goes back to {name}.", f"As {name} found, it is."])
        return kind, self.number(han)

    def number(self, han: bool) -> str:
        number = self.unheard_of()
        spelled = f"{self.pick(['thirty', 'sixty', 'eighty'])}-{self.pick(['three', 'seven'])}"
        while spelled in self.passage:
            spelled += " thousand"
        if han:
            forms = [f"一共有{number}个。", f"比例为{number}%。", f"它在{number}年出现。", f"需要{number}秒。"]
        else:
            forms = [f"There are {number} of them.", f"That is {number}% of all.", f"It took {spelled} attempts."]
        return self.pick(forms)

    def unheard_of(self) -> str:
        digits = ""
        while not digits or digits in self.passage.replace(",", ""):
            digits = "".join(self.pick("123456789") for _ in range(2 + len(digits) % 5))
        return digits

    def wrong_unit(self, han: bool) -> tuple[str, str]:
        """A number of the passage with a unit that it does not have there; a number of its own where there is none."""
        units = UNITS_ZH if han else UNITS_EN
        paired = re.findall(rf"(?<![\w.])(\d+) ?({'|'.join(units)})(?![A-Za-z])", self.passage)
        if not paired:
            return "number", f"{self.unheard_of()}{'' if han else ' '}{self.pick(units)}"
        number, unit = paired[0]
        used = {found for n, found in paired if n == number}
        bare = re.search(rf"(?<![\w.]){number}(?! ?(?:{'|'.join(units)})|[\w.])", self.passage)
        others = [other for other in units if other not in used and other != unit]
        if bare:  # the same number stands there without a unit, so another unit is no clear invention
            return "number", f"{self.unheard_of()}{'' if han else ' '}{self.pick(units)}"
        return "unit", f"{number}{'' if han else ' '}{self.pick(others)}"


OPENINGS = ["In short, ", "Put plainly, ", "There are two points here: ", "Generally speaking, ", "Yes: "]
