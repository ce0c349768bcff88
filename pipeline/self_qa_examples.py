"""One worked example a language for Self-QA's prompts: shown as an earlier turn, it teaches a small model the form.

And the default style of answers, and the ways to decline.

The same for every request, so that servers can cache it. The words are ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A passage with questions, the first answered from `quotes`; and questions `beyond` it, to be declined.

    `sentences` are those of the passage that answer the questions, one each.
    """

    passage: str
    questions: tuple[str, ...]
    quotes: tuple[str, ...]
    answer: str
    beyond: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


EXAMPLES = {
    "en": Example(
        passage=(
            "Lighthouses > Lenses\n\n"
            "A Fresnel lens is built from rings of glass instead of one thick block. That makes it thin enough for a"
            " lamp room: the largest ones weigh about 5 tonnes, where a solid lens of the same reach would weigh many"
            " times more. Keepers cleaned the rings every morning, since a film of soot cost a tenth of the light."
        ),
        questions=(
            "Why do lighthouses use Fresnel lenses instead of solid ones?",
            "How much does one of the largest Fresnel lenses weigh?",
            "What happened to a lighthouse's light when soot lay on its lens?",
        ),
        quotes=("A Fresnel lens is built from rings of glass instead of one thick block.",),
        answer=(
            "A Fresnel lens consists of glass rings rather than a single thick block, which keeps it thin and light"
            " enough for the lamp room of a lighthouse."
        ),
        beyond=(
            "What did a large Fresnel lens cost in the nineteenth century?",
            "Which company makes lighthouse lenses today?",
        ),
        sentences=(
            "A Fresnel lens is built from rings of glass instead of one thick block.",
            "That makes it thin enough for a lamp room: the largest ones weigh about 5 tonnes, where a solid lens of"
            " the same reach would weigh many times more.",
            "Keepers cleaned the rings every morning, since a film of soot cost a tenth of the light.",
        ),
    ),
    "zh": Example(
        passage=(
            "灯塔 > 透镜\n\n"
            "菲涅耳透镜由一圈圈玻璃环拼成，而不是一整块厚玻璃，因此薄得可以放进灯室。最大的一种重约5吨，同样射程的实心透镜要重好几倍。"
            "守塔人每天早晨都要擦拭玻璃环，因为一层烟灰会损失十分之一的光。"
        ),
        questions=(
            "灯塔为什么采用菲涅耳透镜而不用实心透镜？",
            "最大的菲涅耳透镜有多重？",
            "烟灰落在灯塔透镜上会造成什么后果？",
        ),
        quotes=("菲涅耳透镜由一圈圈玻璃环拼成，而不是一整块厚玻璃，因此薄得可以放进灯室。",),
        answer="菲涅耳透镜用玻璃环拼成，比整块厚玻璃薄得多，所以灯室里放得下。",
        beyond=("十九世纪一台大型菲涅耳透镜要花多少钱？", "如今有哪家公司还在生产灯塔透镜？"),
        sentences=(
            "菲涅耳透镜由一圈圈玻璃环拼成，而不是一整块厚玻璃，因此薄得可以放进灯室。",
            "最大的一种重约5吨，同样射程的实心透镜要重好几倍。",
            "守塔人每天早晨都要擦拭玻璃环，因为一层烟灰会损失十分之一的光。",
        ),
    ),
}

_SUNRISE = """api_call: almanac.sun(place='Oslo', event='sunrise', digits=2)
api_arguments: ["place", "event", "digits"]
description: """
_SUNRISE_CALL = "almanac.sun(place='Oslo', event='sunrise')"

API_EXAMPLES = {
    "en": Example(
        passage=_SUNRISE + "Gives the time at which the sun rises in Oslo, from tables that need no network.",
        questions=("I plan a photo walk in Oslo tomorrow and want to know when it gets light, without going online.",),
        quotes=(),
        answer=_SUNRISE_CALL,
    ),
    "zh": Example(
        passage=_SUNRISE + "根据内置的表格给出奥斯陆日出的时间，不需要联网。",
        questions=("我明天要在奥斯陆拍照，想在不联网的情况下知道天什么时候亮。",),
        quotes=(),
        answer=_SUNRISE_CALL,
    ),
}

STYLES = {
    "en": "plain and factual; as short as a complete answer can be",
    "zh": "平实、准确；在完整的前提下尽量简短",
}

DECLINES = {
    "en": (
        "I cannot answer that: the documentation I know does not cover it.",
        "My sources say nothing about it, so I would rather not guess.",
        "That is outside of what I have reliable information on, and I will not make an answer up.",
        "I do not have this information. The maintainers or the official documentation would be the place to ask.",
    ),
    "zh": (
        "这一点我掌握的资料没有涉及，无法回答。",
        "我的资料里没有相关内容，不便猜测。",
        "这超出了我有可靠依据的范围，我不会编造答案。",
        "我没有这方面的信息，建议查阅官方资料或向负责人员咨询。",
    ),
}
