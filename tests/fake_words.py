"""The words of the fake server: a plausible answer from a seed and, where there is one, a JSON schema.

Everything here is a pure function of its arguments: the same seed gives the same answer in every process.
The lists hold none of the words that Self-Instruct bans (draw, picture, plot, map ...), so that a clean answer
passes the filters and a bad one is bad on purpose (`dirty`).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from tests.fake_reading import PASSAGE, Reader

Schema = dict[str, Any]
T = TypeVar("T")


class CannotWriteError(Exception):
    """The request wants what the writer does not know; the server says so with a 400."""


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.replace("\n", " ").split("|")]


ENGLISH: dict[str, list[str]] = {
    "verb": _words("""Write|Compose|Draft|Prepare|Sketch|Produce|Outline|Invent|Improve|Shorten|Translate|Summarize|
        Paraphrase|Review|Correct|Expand|Simplify|Check|Continue|Criticize|Edit|Finish|Format|Proofread"""),
    "act": _words("decide|explain|judge|argue|guess|show|describe|estimate|state|verify|point out|work out"),
    "object": _words("""a short poem|a polite letter|a product review|an opening paragraph|a weekly plan|a riddle|
        a dialogue|a news headline|a recipe|a bedtime story|a job advert|a thank-you note|a speech|a checklist|
        an apology|a book summary|a travel diary|a quiz|a slogan|a horoscope|a lesson plan|a press release|a fable|
        a set of rules|a field report|a status update|an interview question|a eulogy|a haiku|a safety notice|
        a complaint|an invitation|a glossary|a limerick|a timeline|a budget|a user story|a weather forecast"""),
    "topic": _words("""tidal energy|urban beekeeping|the Roman calendar|chess openings|sourdough bread|night trains|
        medieval guilds|coral reefs|public libraries|quantum computers|soil erosion|paper recycling|jazz history|
        bicycle repair|volcanic islands|remote work|bird migration|glass blowing|desert irrigation|vaccine storage|
        school lunches|ocean currents|folk tales|solar eclipses|steam engines|honest advertising|wild mushrooms|
        city parks|old bridges|language learning|sleep habits|tax returns|mountain rescue|tea ceremonies|robot arms|
        rain barrels|museum tickets|football tactics|sign language|prime numbers|letter writing|fishing quotas|
        household budgets|ancient pottery|noise pollution|space debris|kitchen knives|railway timetables|glaciers|
        volunteer firefighters|second-hand clothes|board games|river dams|street markets|typewriters|lighthouses|
        insulin pumps|wool spinning|election posters|moon landings|cheese making|allergy seasons|stone walls|
        carbon taxes|piano tuning|earthquake drills|community gardens|vintage radios|ferry routes|penguin colonies|
        bread prices|ski lifts|postal codes|wind turbines|crossword puzzles|dental care|sea turtles|harvest moons|
        opera houses|fire alarms|balcony tomatoes|trade unions|winter tyres|saffron farming|data privacy"""),
    "audience": _words("""a curious child|new employees|a tired commuter|first-year students|a retired sailor|
        busy parents|a small shop owner|the city council|amateur gardeners|a visiting scientist|night-shift nurses|
        local farmers|a sceptical uncle|museum visitors|young athletes|a film critic|hotel guests|a tour guide|
        apprentice carpenters|beginners|a bored teenager|people who moved recently|a judge|the neighbours"""),
    "qualifier": _words("""in three sentences|without using jargon|in a formal tone|with one concrete example|
        as a numbered list|in under fifty words|from the view of a child|using only simple verbs|
        with a surprising end|in the style of an old newspaper|and name two risks|and give a reason for each step|
        in plain English|while staying neutral|as a table with two columns|and end with a question|in the past tense|
        with some humour|and mention the costs|for a radio broadcast|in the form of a letter|
        and avoid repeating any word|step by step"""),
    "adjective": _words("""cheap|careful|rare|reliable|dusty|quiet|bright|narrow|gentle|costly|modern|slow|hidden|
        practical|noisy|risky|famous|local|seasonal|clumsy|patient|sudden|fragile|gloomy|popular|curious|steep"""),
    "noun": _words("""paragraph|message|proposal|argument|contract|letter|table|sentence|story|review|announcement|
        headline|question|speech|schedule|statement|receipt|note|summary|claim|email|label|caption|warning|recipe"""),
    "thing": _words("""engine|garden|harbour|teacher|market|window|river|printer|village|battery|forest|ticket|
        kitchen|doctor|railway|computer|bridge|festival|contract|library|sensor|orchestra|farmer|planet|factory|
        museum|bakery|committee|satellite|glacier|student|pipeline|neighbour|theatre|laboratory|island|journal|
        vaccine|compass"""),
    "does": _words("""supports|delays|replaces|protects|explains|surrounds|improves|follows|needs|attracts|measures|
        repairs|limits|feeds|warns|connects|resembles|outlives|shapes|supplies|ignores|teaches|borrows|cools"""),
    "link": _words("because|while|although|and|so|until|whenever|but"),
    "label": _words("""positive|negative|neutral|urgent|spam|sports|politics|science|true|false|formal|informal|
        billing|travel|health|finance|fiction|opinion|fact|question|complaint|praise|toxic|safe|low|medium|high"""),
    "number": _words("two|three|four|five|six|seven|eight|ten"),
}

CHINESE: dict[str, list[str]] = {
    "verb": _words("写|编写|起草|准备|构思|改写|总结|翻译|扩写|润色|点评|续写|整理|设计|缩写|修改"),
    "act": _words("判断|解释|说明|论证|推测|描述|估算|指出|证明|评价"),
    "object": _words("""短诗|感谢信|产品评论|开场白|周计划|谜语|对话|新闻标题|菜谱|睡前故事|招聘启事|演讲稿|检查清单|
        道歉信|读后感|旅行日记|测验题|广告语|教案|新闻稿|寓言|规章|工作汇报|邀请函|投诉信|词汇表|时间表|预算|天气预报|
        说明书"""),
    "topic": _words("""潮汐发电|城市养蜂|农历节气|围棋开局|老面馒头|夜行列车|古代行会|珊瑚礁|公共图书馆|量子计算|
        水土流失|废纸回收|京剧脸谱|自行车修理|火山岛|远程办公|候鸟迁徙|玻璃工艺|沙漠灌溉|疫苗储存|学校午餐|洋流|
        民间故事|日食|蒸汽机|野生蘑菇|城市公园|石拱桥|语言学习|睡眠习惯|个人所得税|山地救援|茶道|机械臂|雨水收集|
        博物馆门票|足球战术|手语|质数|书信往来|家庭预算|青铜器|噪声污染|太空垃圾|厨房刀具|铁路时刻|冰川|志愿消防|
        二手衣物|棋类游戏|水坝|夜市|灯塔|羊毛纺织|登月|奶酪制作|地震演练|社区花园|老式收音机|轮渡航线|企鹅|风力发电|
        填字游戏|口腔护理|海龟|丰收节|阳台番茄|数据隐私"""),
    "audience": _words("""好奇的孩子|新员工|疲惫的上班族|大一新生|退休船员|忙碌的父母|小店店主|市议会|业余园丁|
        来访的科学家|夜班护士|当地农民|爱怀疑的叔叔|参观者|年轻运动员|影评人|酒店客人|导游|木工学徒|初学者|
        新来的邻居"""),
    "qualifier": _words("""三句话|正式的语气|一个具体的例子|编号列表|五十字以内的篇幅|孩子的视角|简单的动词|
        意外的结尾|旧报纸的风格|中立的立场|两列表格|过去的口吻|幽默的方式|广播稿的形式|书信的形式|通俗的语言|
        对比的手法|问答的形式|逐步的步骤"""),
    "adjective": _words("""便宜的|细致的|少见的|可靠的|古老的|安静的|明亮的|狭窄的|昂贵的|现代的|隐蔽的|实用的|著名的|
        本地的|脆弱的|陡峭的"""),
    "noun": _words("段落|消息|提案|论点|合同|信件|句子|故事|评论|公告|标题|问题|声明|收据|便条|摘要|邮件|警告"),
    "thing": _words("""发动机|花园|港口|老师|市场|窗户|河流|打印机|村庄|电池|森林|车票|厨房|医生|铁路|计算机|桥梁|
        节日|图书馆|传感器|乐团|农民|行星|工厂|面包店|委员会|卫星|学生|管道|剧院|实验室|岛屿|日志|指南针"""),
    "does": _words("""支持|推迟|取代|保护|解释|环绕|改善|跟随|需要|吸引|测量|修理|限制|供养|警告|连接|塑造|供应|忽视|
        教导"""),
    "link": _words("因为|同时|虽然|而且|所以|直到|但是"),
    "label": _words("""正面|负面|中性|紧急|垃圾邮件|体育|政治|科学|真|假|正式|非正式|旅行|健康|财经|小说|观点|事实|
        投诉|表扬|安全|低|中|高"""),
    "number": _words("两|三|四|五|六|七|八|十"),
}

Template = list[str | list[str]]


def _templates(words: dict[str, list[str]], text: str) -> list[Template]:
    """One template a line; `{topic}` becomes the list to choose from, what is between stays text."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return [[words[part] if i % 2 else part for i, part in enumerate(re.split(r"\{(\w+)\}", line))] for line in lines]


class Language:
    """Word lists and the templates over them, for one language."""

    def __init__(self, words: dict[str, list[str]], gap: str, stop: str, texts: dict[str, str]) -> None:
        self.words = words
        self.gap = gap
        self.stop = stop
        self.instruction = _templates(words, texts["instruction"])
        self.question = _templates(words, texts["question"])
        self.common = _templates(words, texts["common"])
        self.bad = _templates(words, texts["bad"])
        self.chatter = texts["chatter"].split("|")


EN = Language(
    ENGLISH,
    " ",
    ".",
    {
        "instruction": """
            {verb} {object} about {topic} {qualifier}.
            {verb} {object} introducing {topic} to {audience}.
            {verb} {object} in which a {adjective} {thing} {does} {topic}.
            Given {object}, {act} whether it concerns {topic} or {topic}.
            Tell {audience} how {topic} changed {topic}.
            List {number} {adjective} ways {topic} can help {audience}.
            Rewrite this {noun} about {topic} for {audience} {qualifier}.
            Compare {topic} with {topic} {qualifier}.
            Classify each {adjective} {noun} as {label}, {label} or {label}.
            Find every {adjective} {noun} mentioning {topic} {qualifier}.
            Suggest {number} {adjective} plans combining {topic} with {topic}.
            Without {topic}, what would {audience} miss about {topic}?
            Does a {adjective} {noun} about {topic} sound {label} or {label}?
            Would {audience} trade a {adjective} {thing} for a {adjective} {thing}?
            Advise {audience} on {topic} using {object}.
            Turn the {adjective} {noun} into {object} for {audience}.
            Contrast a {adjective} {thing} and a {adjective} {thing} {qualifier}.""",
        "question": """
            Why do {topic} matter to {audience}?
            How does the {adjective} {thing} affect {topic}?
            What is the link between {topic} and {topic}?
            Which {thing} {does} the {thing} when it comes to {topic}?
            When did {audience} first hear about {topic}, and from whom?
            How many {adjective} kinds of {thing} are known in {topic}?
            What happens to {topic} if the {thing} {does} the {thing}?""",
        "common": """
            {verb} a short story about {topic}.
            Summarize the following {noun} in {number} sentences.
            Translate the given {noun} into French.""",
        "bad": """
            Draw a picture of {topic}.
            Plot a graph of {topic} for {audience}.
            Write a program that sorts {topic} by price.
            ? {verb} {object} about {topic}.
            {verb} it
            Listen to the audio file and {act} what it says about {topic}.""",
        "chatter": "Sure! Here is what you asked for:|Of course.|Here you go:|I hope this helps!|Let me know.",
    },
)

ZH = Language(
    CHINESE,
    "",
    "。",
    {
        "instruction": """
            请以{qualifier}{verb}关于{topic}的{object}。
            为{audience}{verb}介绍{topic}的{object}。
            {verb}{object}，写{adjective}{thing}如何{does}{topic}。
            {act}这份{object}讲的是{topic}还是{topic}。
            告诉{audience}，{topic}怎样改变了{topic}。
            列出{number}种{adjective}办法，让{topic}帮助{audience}。
            把关于{topic}的{noun}用{qualifier}改写给{audience}。
            用{qualifier}比较{topic}与{topic}。
            将每则{adjective}{noun}归为{label}、{label}或{label}。
            找出提到{topic}的{adjective}{noun}，采用{qualifier}。
            给{audience}提{number}个结合{topic}与{topic}的计划。
            没有{topic}，{audience}会怀念{topic}的什么？
            关于{topic}的{adjective}{noun}听起来{label}还是{label}？
            {audience}愿用{adjective}{thing}换{adjective}{thing}吗？
            以{object}的形式向{audience}介绍{adjective}{thing}。""",
        "question": """
            为什么{topic}对{audience}很重要？
            {adjective}{thing}如何影响{topic}？
            {topic}与{topic}之间有什么联系？
            谈到{topic}时，哪种{thing}{does}{thing}？
            {audience}最早在什么时候听说{topic}？""",
        "common": """
            {verb}一个关于{topic}的短故事。
            用{number}句话总结下面的{noun}。""",
        "bad": """
            画一张{topic}的图片。
            写一个程序，按价格给{topic}排序。
            ，{verb}{object}。
            {verb}""",
        "chatter": "好的，结果如下：|当然可以。|希望对您有帮助！|如需更多请告诉我。",
    },
)

CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
FENCE = re.compile(r"```json\s*\n(.*?)```", re.DOTALL)
BEYOND = re.compile("beyond the passage|材料之外")  # the questions are there to be declined
TYPES = {"object", "array", "string", "boolean", "integer", "number", "null"}
DEEPEST = 6  # a schema that refers to itself gets its shortest lists from here on
EMPTY_INPUTS = 0.3
TRUE_SHARE = 0.3
COMMON_SHARE = 0.04  # instructions that every model writes again and again


class Writer:
    """Writes one answer. `source` is the last user message: its language is spoken, its sentences can be quoted."""

    def __init__(
        self, seed: int, source: str, dirty: float = 0.0, plant: float = 0.0, full_lists: bool = False
    ) -> None:
        self.random = Random(seed).random
        self.language = ZH if CJK.search(source) else EN
        self.source = source
        self.dirty = dirty
        self.plant = plant
        self.full_lists = full_lists
        self.planted: str | None = None  # what the last reading invented
        self.defs: Schema = {}

    def answer(self, schema: Schema | None) -> tuple[str, str]:
        """The text and its finish reason."""
        if schema is None:
            text = self.sentence(3, 60)
        else:
            text = json.dumps(self.structured(schema), ensure_ascii=False)
            if self.chance(self.dirty):
                chatter = self.language.chatter
                text = f"{self.pick(chatter)}\n```json\n{text}\n```\n{self.pick(chatter)}"
        if self.chance(self.dirty / 2):
            return text[: int(len(text) * self.random())], "length"
        return text, "stop"

    def structured(self, schema: Schema) -> Any:
        """A value that keeps to the schema."""
        self.defs = schema.get("$defs") or schema.get("definitions") or {}
        return self.value(schema)

    # -- a value for a schema

    def value(self, schema: Schema, name: str = "", depth: int = 0) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.pick(schema["enum"])
        if "$ref" in schema:
            return self.value(self.definition(schema["$ref"]), name, depth)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.value(self.alternative(schema[several], several, depth), name, depth)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = self.pick(kind)
        match kind:
            case "object":
                return self.object(schema, depth)
            case "array":
                return self.array(schema, name, depth)
            case "boolean":
                return self.chance(TRUE_SHARE)
            case "integer" | "number":
                return self.number(schema, whole=kind == "integer")
            case "null":
                return None
        return self.string(schema, name)

    def definition(self, reference: str) -> Schema:
        name = reference.rsplit("/", 1)[-1]
        if name not in self.defs:
            raise CannotWriteError(f"the schema has no {reference}")
        found: Schema = self.defs[name]
        return found

    def alternative(self, schemas: list[Schema], kind: str, depth: int) -> Schema:
        if kind == "allOf" and len(schemas) > 1:
            raise CannotWriteError("it can not join the schemas of an allOf")
        nulls = [schema for schema in schemas if schema.get("type") == "null"]
        return self.pick(nulls if nulls and depth > DEEPEST else schemas)

    def object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties: dict[str, Schema] = schema.get("properties", {})
        if properties.keys() == {"quotes", "answer"}:
            reading = Reader(self.source, self.chance, self.pick).read(self.plant)
            self.planted = reading.planted
            return {"quotes": reading.quotes, "answer": "" if self.chance(self.dirty) else reading.answer}
        if properties.keys() == {"call"}:
            call, self.planted = Reader(self.source, self.chance, self.pick).call(self.plant)
            return {"call": call}
        if properties.keys() == {"reason", "better"}:
            return {"reason": self.sentence(4, 9), "better": better_of(self.source)}
        required = schema.get("required", properties)
        made = {
            name: self.value(inner, name, depth + 1)
            for name, inner in properties.items()
            if name in required or self.chance(0.8)
        }
        if made.get("input") and "output" in made and self.chance(self.dirty):
            made["output"] = made["input"]
        return made

    def array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        low = schema.get("minItems", min(2, schema.get("maxItems", 2)))
        high = schema.get("maxItems", max(8, low))
        length = schema.get("minItems", 0) if depth > DEEPEST else high if self.full_lists else self.between(low, high)
        items = [self.value(schema.get("items", {}), name, depth + 1) for _ in range(length)]
        if schema.get("uniqueItems"):
            more = (self.value(schema.get("items", {}), name, depth + 1) for _ in range(100))
            distinct = {json.dumps(item): item for item in itertools.chain(items, more)}
            items = list(distinct.values())[:length]
        have_inputs = len(items) > 1 and all(isinstance(item, dict) and item.get("input") for item in items[:2])
        if have_inputs and self.chance(self.dirty):  # the same input twice, with different outputs
            items[1]["input"] = items[0]["input"]
        return items

    def number(self, schema: Schema, whole: bool) -> int | float:
        low, high = (
            schema.get(inclusive, schema.get(exclusive))
            for inclusive, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
        )
        if low is None:
            low = 0 if high is None else min(0, high - 100)
        if high is None:
            high = low + 100
        if whole:
            first = math.floor(low) + 1 if "exclusiveMinimum" in schema else math.ceil(low)
            last = math.ceil(high) - 1 if "exclusiveMaximum" in schema else math.floor(high)
            return self.between(first, last)
        return float(low + (high - low) * (0.01 + 0.98 * self.random()))

    def string(self, schema: Schema, name: str) -> str:
        text = self.named(name.lower().removesuffix("s"))
        while len(text) < schema.get("minLength", 0):
            text += self.language.gap + self.sentence(5, 20)
        text = text[: schema.get("maxLength", len(text))]
        if "pattern" in schema and not re.search(schema["pattern"], text):
            raise CannotWriteError(f"it has no text for the pattern {schema['pattern']!r}")
        return text

    def named(self, name: str) -> str:
        if name.endswith("instruction"):
            return self.instruction()
        if name.endswith("question"):
            about_it = PASSAGE.search(self.source) and not BEYOND.search(self.source)
            return (
                Reader(self.source, self.chance, self.pick).question()
                if about_it
                else self.fill(self.language.question)
            )
        if name.endswith("label"):
            return self.pick(self.language.words["label"])
        if name.endswith("quote"):
            return self.quote()
        if name.endswith("input"):
            return "" if self.chance(EMPTY_INPUTS) else self.sentence(1, 40)
        if name.endswith(("output", "answer")):
            return "" if self.chance(self.dirty) else self.sentence(1, 40)
        return self.sentence(2, 12)

    # -- text

    def instruction(self) -> str:
        if self.chance(self.dirty):
            return self.fill(self.language.bad)
        return self.fill(self.language.common if self.chance(COMMON_SHARE) else self.language.instruction)

    def sentence(self, fewest: int, most: int) -> str:
        """Between `fewest` and `most` words (characters of two or so in Chinese)."""
        length = self.between(fewest, most)
        words = self.language.words
        parts: list[str] = []
        while len(parts) < length:
            parts += [self.pick(words["adjective"]), self.pick(words["thing"]), self.pick(words["does"])]
            parts += [self.pick(words["thing"]), self.pick(words["link"])]
        if length % 5 in (0, 1):  # it would end in a link or an adjective
            parts[length - 1] = self.pick(words["thing"])
        text = self.language.gap.join(parts[:length])
        return text[0].upper() + text[1:] + self.language.stop

    def quote(self) -> str:
        """A stretch of the longest paragraph that was sent, exactly as it stands there."""
        paragraph = max(self.source.split("\n\n"), key=len)
        sentences: list[str] = re.findall(r"[^.!?。！？\n]+[.!?。！？]?", paragraph) or [paragraph]
        return self.pick(sentences).strip()

    def fill(self, templates: list[Template]) -> str:
        template = self.pick(templates)
        return "".join([part if isinstance(part, str) else self.pick(part) for part in template])

    # -- chance

    def pick(self, values: Sequence[T]) -> T:
        return values[int(self.random() * len(values))]

    def between(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def chance(self, share: float) -> bool:
        return share > 0 and self.random() < share


def better_of(question: str) -> str:
    """A pair judge that likes some texts better than others; one time in five it names the first place, whatever
    stands there, and one in ten it says that both are alike. All of it depends on the texts alone.
    """
    first, second = (
        question.split(f"<{name}>\n", 1)[-1].split(f"\n</{name}>", 1)[0].encode() for name in ("first", "second")
    )
    mood = zlib.crc32(b"\0".join(sorted((first, second)))) % 10
    if mood in (0, 1):
        return "first"
    if mood == 2:
        return "tie"
    return "first" if zlib.crc32(first) < zlib.crc32(second) else "second"


def schema_in_prompt(prompt: str) -> Schema | None:
    """The last JSON schema in a ```json fence of the prompt; fenced examples that are no schema are passed over."""
    for fenced in reversed(FENCE.findall(prompt)):
        try:
            found = json.loads(fenced)
        except ValueError:
            continue
        if isinstance(found, dict) and ("properties" in found or "$ref" in found or found.get("type") in TYPES):
            return found
    return None
