"""Chinese wording (pipeline/checks/wording.py, shape.py): what gives a text away, and what only looks like it.

A row is a whole question or answer. The sound ones matter as much as the others: 该怎么办 asks, 上下文 is no 下文,
and an apology in a letter is no refusal.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checks import shape, wording

FOUND: dict[str, tuple[Callable[[str], str | None], str, str]] = {
    # what -> (the check, what it has to find, what it has to leave)
    "refusals": (
        wording.refusal,
        """抱歉，我無法回答這個問題。
        對不起，我不能提供相關資訊。
        抱歉，我无法回答这个问题。
        不好意思，这个问题我暂时回答不了。
        不好意思，我不会生成图片。
        抱歉，这个我帮不了您。
        我是通义千问，由阿里云开发的大语言模型。
        我很乐意帮忙，但我无法播放音乐。
        由于我是文本模型，无法生成图片。
        这个问题涉及敏感内容，我不便讨论。
        根据相关法律法规，无法回答该问题。
        让我们换个话题吧。
        我还没有学会回答这个问题。
        我尚未学习如何回答这个问题，如果您有其他问题，我非常乐意为您提供帮助。
        对此我无可奉告。
        恕我无法从命。
        无法提供该信息。
        作为人工智能，我没有身体。
        作为一名人工智能助手，我不能提供医疗建议。
        我没有办法获取实时数据。
        截至我的知识更新时间（2023年），还没有相关信息。
        我的知识截止到2021年9月，无法得知之后的事。
        您没有提供具体的文章内容，请把文章发给我。
        您好，我不太明白您的意思，请提供更多信息。""",
        """抱歉，我来晚了，路上堵车。
        对不起，这件事我做得不好，不会再有下次了。
        对不起，您拨打的电话暂时无法接通。
        亲爱的王经理：非常抱歉，由于身体原因，我无法参加明天的会议。
        尊敬的客户：很遗憾地通知您，您申请的贷款未能通过审批。
        我不能说谎，也不想让你难过。
        我不会提供任何借口，只会更努力。
        作为一个语言模型公司的员工，他每天写代码。
        作为人工智能专业的学生，我推荐先学线性代数。
        作为大模型的核心技术，注意力机制由谷歌提出。
        人工智能作为一门学科，研究如何让机器具有智能。
        我只是一个普通人，没有什么大志向。
        无法确定，题目条件不足。""",
    ),
    "questions that point at a text": (
        wording.points_away,
        """這篇文章的主要觀點是什麼？
        該方法有什麼優點？
        这篇文章的主要观点是什么？
        该方法有什么优点？
        请问，该方法有什么优点？
        为什么这种方法更有效？
        此方法的局限是什么？
        本研究采用了什么数据集？
        根据本办法，员工几点上班？
        作者为什么认为微调重要？
        文中提到的三种方法是什么？
        从文中看，哪一步最难？
        文章的主旨是什么？
        根据材料，LoRA有什么作用？
        上面提到的模型有多少参数？
        下面的代码有什么作用？
        以上哪种说法正确？
        它的优点是什么？
        他们为什么失败？
        其主要用途是什么？
        表1中哪个模型最好？
        图2说明了什么？
        资料里给出的建议有哪些？""",
        """显存不足时该怎么办？
        微调失败后该如何排查？
        第一次租房该注意什么？
        该不该让孩子玩手机？
        大模型的上下文长度有什么限制？
        LoRA这种方法为什么省显存？
        《背影》这本书写于哪一年？
        《红楼梦》的作者是谁？
        QLoRA论文的作者是谁？
        短视频创作者怎样获得收入？
        鲁迅在散文中常用哪些修辞？
        语文中考的作文占多少分？
        人文中心在哪里？
        英文中“the”怎么用？
        中文章节标题如何编号？
        写文章时怎样避免跑题？
        版本研究的意义是什么？
        日本公司为什么重视年功？
        一名患者被查出房间隔缺损，这种缺损会导致哪些症状？
        一位50岁男性患者确诊为白血病，请问该病需要做哪些检查？
        复合材料中哪一种最硬？
        此外还有哪些方法可以节省显存？""",
    ),
    "answers that speak of their source": (
        wording.speaks_of_source,
        """根據資料，LoRA可以減少顯存。
        作者認為微調很有必要。
        根据文章，LoRA可以减少显存。
        文中指出，数据质量更重要。
        正如上文所述，需要冻结参数。
        作者认为微调很有必要。
        根据所提供的信息，答案是三种。
        根据现有资料，共有五种。
        资料显示，显存占用下降了一半。
        段落中说明了三个原因。
        从给定的文本可知，答案是5吨。
        文档中没有说明。
        原文写道：“一切皆可微调”。
        本文介绍了QLoRA方法。""",
        """根据内容的不同，可以分为三类。
        基于文本的检索速度更快。
        基于内容的推荐系统依靠物品特征。
        从原材料到成品要经过五道工序。
        《背影》的作者说自己流了泪。
        QLoRA的作者认为4比特量化足够。
        按照材料的硬度分类。
        根据资料库中的记录进行匹配。
        英文中提到日期时先写月份。
        模型一次能读的上下文越长，占用的显存越多。""",
    ),
    "answers that their source lacks": (
        wording.says_unanswered,
        """材料中没有提到这一点。
        没有相关信息。
        暂无相关信息。
        无法从中得知。
        无从得知。
        我不知道。
        不清楚。
        尚不清楚具体数字。""",
        """如果没有相关资料，可以先做问卷。
        在没有足够数据的情况下，应冻结大部分参数。
        知道与不知道之间，差别很大。""",
    ),
    "texts that break off": (
        shape.breaks_off,
        """首先，需要准备好食材，然后把番茄切成小块，接着
        春天来了，万物复苏，小草从土里钻了出来，花儿也
        人工智能的发展经历了三个阶段。第一阶段是符号主义，第二阶段是连接主义，第三
        这个方案的主要优点在于成本低、见效快，而
        他想了想，说：“我明天一定
        推荐先读鲁迅的《呐喊
        推荐先烧水再下面，煮三分钟以后捞出来过一遍凉水，然后加入葱花、香油、酱油和少许白糖，喜欢吃辣的再放一勺油泼辣子拌匀以后再""",
        """盐、醋、白糖、酱油
        床前明月光，疑是地上霜，举头望明月，低头思故乡
        两情若是久长时，又岂在朝朝暮暮
        答案是：因为小明是哥哥，所以他先分糖
        旧衣有新家，温暖再出发
        我的家乡在成都
        光合作用是绿色植物利用光能，把二氧化碳和水转化为有机物的过程
        先焯水，再炒糖色。加水炖一小时。最后大火收汁即可
        王勃《送杜少府之任蜀州》""",
    ),
    "tasks for eyes and ears": (
        wording.names_medium,
        """请看图写话。
        生成一张小猫的图。
        播放一首周杰伦的歌。
        把截图里的字抄下来。""",
        """心电图表现为早搏，应该怎么治疗？
        地图舌需要治疗吗？
        画龙点睛是什么意思？
        把下面的表格转成Markdown。""",
    ),
}
ROWS = [
    (what, text.strip(), number == 0)
    for what, (_, *both) in FOUND.items()
    for number, texts in enumerate(both)
    for text in texts.splitlines()
]


@pytest.mark.parametrize(("what", "text", "is_found"), ROWS)
def test_what_gives_a_text_away_and_what_does_not(what: str, text: str, is_found: bool) -> None:
    found = FOUND[what][0](text)
    assert (found is not None) == is_found, found


@pytest.mark.parametrize("text", ["无", "无。", "（无）", "【无】", "无需输入", "不需要输入", "无额外输入", "不适用"])
def test_an_input_that_says_there_is_none(text: str) -> None:
    assert wording.PLACEHOLDERS.fullmatch(text)


@pytest.mark.parametrize("text", ["无锡", "无人机", "不适用于儿童", "输入"])
def test_an_input_that_only_begins_so(text: str) -> None:
    assert wording.PLACEHOLDERS.fullmatch(text) is None


@pytest.mark.parametrize(("text", "asked", "is_nothing"), [
    ("略", "写一首诗。", True), ("（略）", "写一首诗。", True), ("同上", "写一首诗。", True),
    ("略", "“策略”的第二个字是什么？", False), ("略有增长", "销量怎样？", False),
])  # fmt: skip
def test_a_word_in_the_place_of_an_answer(text: str, asked: str, is_nothing: bool) -> None:
    assert shape.says_nothing(text, asked) == is_nothing


def test_real_questions_that_stand_alone_are_not_said_to_point_away(data_dir: Path) -> None:
    """6,000 questions of HuaTuo's: 38 speak of 这两种疾病 or 该患者 and name none; before, 1,102 were turned away."""
    with gzip.open(data_dir / "instructions_zh.jsonl.gz", "rt", encoding="utf-8") as lines:
        questions = [json.loads(line)["instruction"] for line in lines]
    pointing = [question for question in questions if wording.points_away(question)]
    assert len(questions) == 6000
    assert 20 <= len(pointing) <= 45, pointing[:50]
