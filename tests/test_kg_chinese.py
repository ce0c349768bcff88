"""Self-KG in Chinese: what a label becomes in a sentence, and what the check makes of Chinese numbers and denials."""

from __future__ import annotations

import pytest

from kg.graph import Graph, GraphBuilder
from kg.questions import KINDS, Sampler
from kg.values import value_of, values_in
from pipeline.checks.graph_check import Asked, check
from pipeline.phrasing.chinese import comparative, phrases_of
from pipeline.phrasing.speaker import Speaker

# label -> the statement, and the questions for either end
SAID = {
    "作者": ("甲的作者是乙", "甲的作者是谁？", "哪个条目的作者是乙？"),
    "创始人": ("甲的创始人是乙", "甲的创始人是谁？", "哪个条目的创始人是乙？"),
    "主要人物": ("甲的主要人物是乙", "甲的主要人物是谁？", "哪个条目的主要人物是乙？"),
    "弟弟": ("甲的弟弟是乙", "甲的弟弟是谁？", "谁的弟弟是乙？"),
    "出生地": ("甲的出生地是乙", "甲的出生地是哪里？", "谁的出生地是乙？"),
    "總部": ("甲的總部是乙", "甲的總部是哪里？", "哪个条目的總部是乙？"),
    "出生年份": ("甲的出生年份是乙", "甲的出生年份是哪一年？", "谁的出生年份是乙？"),
    "通车时间": ("甲的通车时间是乙", "甲的通车时间是什么时候？", "哪个条目的通车时间是乙？"),
    "员工人数": ("甲的员工人数是乙", "甲的员工人数是多少？", "哪个条目的员工人数是乙？"),
    "海拔": ("甲的海拔是乙", "甲的海拔是多少？", "哪个条目的海拔是乙？"),
    "人口（万人）": ("甲的人口是乙万人", "甲的人口是多少万人？", "哪个条目的人口是乙万人？"),
    "别名（旧）": ("甲的别名（旧）是乙", "甲的别名（旧）是什么？", "哪个条目的别名（旧）是乙？"),
    "症状": ("甲的症状是乙", "甲的症状是什么？", "哪个条目的症状是乙？"),
    "located in": ("甲的“located in”一项是乙", "甲的“located in”一项是什么？", "哪个条目的“located in”一项是乙？"),
    "BMI": ("甲的“BMI”是乙", "甲的“BMI”是什么？", "哪个条目的“BMI”是乙？"),
    "参数": ("甲的参数是乙", "甲的参数是什么？", "哪个条目的参数是乙？"),
    "用法用量": ("甲的用法用量是乙", "甲的用法用量是什么？", "哪个条目的用法用量是乙？"),
    "发明": ("甲发明了乙", "甲发明了什么？", "谁发明了乙？"),
    "注入": ("甲注入乙", "甲注入什么？", "什么注入乙？"),
    "流经": ("甲流经乙", "甲流经哪里？", "什么流经乙？"),
    "毕业于": ("甲毕业于乙", "甲毕业于哪里？", "谁毕业于乙？"),
    "總部位於": ("甲總部位於乙", "甲總部位於哪里？", "什么總部位於乙？"),
    "属于": ("甲属于乙", "甲属于什么？", "什么属于乙？"),
    "生于": ("甲生于乙", "“甲生于……”，其中应填什么？", "谁生于乙？"),
}


@pytest.mark.parametrize("label", SAID)
def test_what_a_label_becomes(label: str) -> None:
    phrases = phrases_of(label)
    filled = [text.format(s="甲", o="乙") for text in (phrases.statement, phrases.tail, phrases.head)]
    assert tuple(filled) == SAID[label]


@pytest.mark.parametrize(
    ("label", "more", "less"),
    [
        ("长度", "更长", "更短"), ("海拔（米）", "更高", "更低"), ("人口", "更多", "更少"), ("面积", "更大", "更小"),
        ("成立年份", "更晚", "更早"), ("指数", "更高", "更低"), ("由近到远的次序", "更靠后", "更靠前"),
    ],
)  # fmt: skip
def test_how_more_of_it_is_said(label: str, more: str, less: str) -> None:
    assert comparative(label, more=True, dates=False) == more
    assert comparative(label, more=False, dates=False) == less


TRIPLES = """
李白 出生年份 701|李白 代表作 静夜思|李白 代表作 将进酒|李白 好友 杜甫|杜甫 出生年份 712|杜甫 出生地 巩县
杜甫 逝世年份 770|苏轼 出生年份 1037|苏轼 弟弟 苏辙|列夫·托尔斯泰 代表作 战争与和平
列夫·托尔斯泰 代表作 安娜·卡列尼娜|列夫·托尔斯泰 出生日期 1828年9月9日|上海 人口 2487万人|北京 人口 2189万人
上海 地区生产总值 4.72万亿元|北京 地区生产总值 4.38万亿元|长江 长度 6300公里|黄河 长度 5464公里|长江 流经 武汉
长江 流经 南京|黄河 注入 渤海|黄河 发源于 巴颜喀拉山脉|PyTorch 开发者 Meta|TensorFlow 开发者 Google
華為 總部位於 深圳|華為 創立年份 1987|騰訊 創立年份 1998|水 沸点 100摄氏度|酒精 沸点 78.4℃|詹天佑 主持修建 京张铁路
京张铁路 全长 约200公里|毕昇 发明 活字印刷术|感冒 传染性 有|汉武帝 出生年份 公元前156年|秦始皇 出生年份 公元前259年
广州 面积（平方公里） 7434|深圳 面积（平方公里） 1997|光速 数值 299792458米/秒
"""


def poets_and_rivers() -> Graph:
    builder = GraphBuilder()
    for triple in TRIPLES.replace("|", "\n").split("\n"):
        if triple:
            builder.add(*triple.split(" "))
    return builder.build()


@pytest.fixture(scope="module")
def drafts() -> dict[str, str]:
    """Every question of the graph and its answer; the check passes each."""
    graph = poets_and_rivers()
    speaker, found = Speaker(graph, "zh"), {}
    for question in Sampler(graph, per_fact=len(KINDS), hops=2).questions():
        draft = speaker.draft(question)
        assert check(Asked(question, speaker), draft.instruction, draft.output) is None, draft
        found[draft.instruction] = draft.output
    return found


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("李白和杜甫，谁的出生年份更晚？", "杜甫。杜甫的出生年份是712年，而李白的出生年份是701年。"),
        ("華為和騰訊，哪个的創立年份更晚？", "騰訊。騰訊的創立年份是1998年，而華為的創立年份是1987年。"),
        ("列夫·托尔斯泰的代表作是什么？请列出知识图谱给出的全部2个答案。", "安娜·卡列尼娜、战争与和平。"),
        ("李白的代表作是什么？请列出知识图谱给出的全部2个答案。", "将进酒和静夜思。"),
        ("詹天佑主持修建的工程的全长是多少？", "詹天佑主持修建了京张铁路，京张铁路的全长约为200公里。"),
        ("苏轼的出生年份是哪一年？", "苏轼的出生年份是1037年。"),
        ("广州和深圳，哪个的面积更小？", "深圳。深圳的面积是1997平方公里，而广州的面积是7434平方公里。"),
        ("華為的總部所在地的面积是多少平方公里？", "華為總部位於深圳，深圳的面积是1997平方公里。"),
        ("PyTorch的开发者是谁？", "Meta。"),
        ("水和酒精，哪个的沸点更高？", "水。水的沸点是100摄氏度，而酒精的沸点是78.4℃。"),
    ],
)
def test_whole_questions(drafts: dict[str, str], question: str, answer: str) -> None:
    assert drafts[question] == answer


def test_no_answer_is_a_bare_number(drafts: dict[str, str]) -> None:
    assert [answer for answer in drafts.values() if answer.strip("。").isdigit()] == []


# ---------------------------------------------------------------- the check

REWORDED = [  # a template's question, a model's question and answer, and whether the graph vouches for them
    ("谁发明了活字印刷术？", "活字印刷术的发明者是谁？", "活字印刷术由毕昇发明。", True),
    ("黄河发源于哪里？", "黄河的源头在哪里？", "黄河发源于巴颜喀拉山脉。", True),
    ("黄河注入什么？", "黄河最后流入哪片海？", "黄河最后注入渤海。", True),
    ("黄河注入什么？", "黄河注入什么？", "渤海注入黄河。", False),
    ("李白和杜甫，谁的出生年份更晚？", "李白和杜甫谁更晚出生？", "杜甫更晚出生，生于712年；李白生于701年。", True),
    ("李白和杜甫，谁的出生年份更晚？", "李白和杜甫谁更晚出生？", "李白比杜甫更晚出生。", False),
    (
        "判断对错：李白的代表作包括将进酒。",
        "《将进酒》是李白的代表作吗？",
        "是的，《将进酒》是李白的代表作之一。",
        True,
    ),
    ("判断对错：李白的代表作包括将进酒。", "《将进酒》是不是李白的代表作？", "没错，是李白的代表作。", True),
    ("判断对错：李白的代表作包括将进酒。", "《将进酒》是李白的代表作吗？", "不是。", False),
    ("判断对错：李白的代表作包括将进酒。", "李白是《将进酒》的代表作吗？", "是的。", False),
]


@pytest.mark.parametrize(("plain", "instruction", "output", "is_right"), REWORDED)
def test_what_a_model_makes_of_it(plain: str, instruction: str, output: str, is_right: bool) -> None:
    graph = poets_and_rivers()
    speaker = Speaker(graph, "zh")
    asked = [q for q in Sampler(graph, per_fact=len(KINDS)).questions() if speaker.draft(q).instruction == plain]
    found = check(Asked(asked[0], speaker), instruction, output)
    assert (found is None) == is_right, found


ASKED = {
    "好友": ("tail", "好友", "李白的好友是谁？"),
    "长度": ("tail", "长度", "黄河有多长？"),
    "人口": ("tail", "人口", "上海有多少人口？"),
    "生年": ("tail", "出生年份", "苏轼是哪一年出生的？"),
    "传染": ("absent", "传染性", "腾讯有没有传染性？"),
}


def broken(which: str, answer: str) -> str:
    """What the check says of an answer."""
    kind, relation, question = ASKED[which]
    graph = poets_and_rivers()
    for asked in Sampler(graph, per_fact=len(KINDS), kinds=(kind,)).questions():
        subject = graph.keys[asked.asked[0]]
        if graph.relation_keys[asked.relations[0]] == relation and not asked.inverse and subject in question:
            found = check(Asked(asked, Speaker(graph, "zh")), question, answer)
            return found.reason if found else ""
    raise AssertionError(f"no question about {relation}")


@pytest.mark.parametrize(
    ("which", "answer", "why"),
    [
        ("好友", "李白的好友是杜甫。", ""),
        ("好友", "是杜甫，两人相识不久便成了知交。", ""),
        ("好友", "杜甫，不止一首诗写到这段友情，也不愧为知己。", ""),
        ("好友", "杜甫从未是李白的好友。", "denies"),
        ("好友", "有人误以为是杜甫。", "denies"),
        ("好友", "杜甫否认是李白的好友。", "denies"),
        ("长度", "五千四百六十四公里。", ""),
        ("长度", "5464千米，即546.4万米。", ""),
        ("长度", "5464公里，将近六千三百公里。", "says '六千三百公里'"),
        ("人口", "2487万人", ""),
        ("人口", "24870000人。", ""),
        ("人口", "上海有２４８７万人口。", ""),
        ("人口", "2478万人。", "says '2478万人'"),
        ("人口", "上海有两千四百八十七万人。", ""),
        ("生年", "苏轼生于一〇三七年。", ""),
        ("生年", "苏轼生于公元1037年。", ""),
        ("生年", "苏轼生于一〇三六年。", "says '一〇三六年'"),
    ],
)
def test_chinese_numbers_and_denials(which: str, answer: str, why: str) -> None:
    found = broken(which, answer)
    assert (why in found) if why else not found


def test_what_is_not_said_is_seen_beside_a_name_that_is_part_of_the_words() -> None:
    """有 is a name in this graph, and 没有 says that there is nothing."""
    graph = poets_and_rivers()
    speaker = Speaker(graph, "zh")
    absent = list(Sampler(graph, per_fact=len(KINDS), kinds=("absent",)).questions())
    assert absent
    for question in absent:
        draft = speaker.draft(question)
        assert "没有给出" in draft.output
        assert check(Asked(question, speaker), draft.instruction, draft.output) is None
        assert check(Asked(question, speaker), draft.instruction, draft.output.replace("没有", "有")) is not None


@pytest.mark.parametrize(
    ("text", "number", "dimension"),
    [
        ("约200公里", 200_000, "length"), ("78.4℃", 78.4, "degrees Celsius"), ("2487万人", 24_870_000, "people"),
        ("4.72万亿元", 4.72e12, "yuan"), ("6340.5平方公里", 6.3405e9, "area"),
        ("两千四百八十七万人", 24_870_000, "people"),
    ],
)  # fmt: skip
def test_values_in_chinese_units(text: str, number: float, dimension: str) -> None:
    value = value_of(text)
    assert value is not None
    assert value.dimension == dimension
    assert value.number == pytest.approx(number)


def test_numerals_inside_words_are_no_values() -> None:
    assert values_in("一千零一夜，百年孤独，千万不要，十分有趣，一元二次方程，万人空巷，三秒之内") == []
