"""Phrases that give a text away: refusals, pieces of prompts, what a text model cannot do, a question that points.

Each function returns the phrase it found, or None. English and Chinese; a phrase that good answers hold too is not
here, or only where it stands (at the start of an answer, at the start of a line).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pipeline.text import one_line

# ---------------------------------------------------------------- tasks that a text model cannot do

# Self-Instruct's list and Alpaca's five more; the Chinese ones are ours, made so as not to hit 计划 or 动画一集.
KEYWORDS_EN = (
    "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
).split()
KEYWORDS_EN.append("go to")
KEYWORDS_ZH = (
    "图片 图像 照片 图表 流程图 示意图 地图 文件 视频 音频 绘制 (?<![动漫绘油国版壁字年描刻])画[图出一]".split()
)
_KEYWORD = re.compile(  # \b would see no border between 开 and file
    rf"(?<![a-z0-9_])(?:{'|'.join(KEYWORDS_EN)})(?![a-z0-9_])|{'|'.join(KEYWORDS_ZH)}", re.IGNORECASE
)
_AS_A_SUBJECT = re.compile(  # among others, or as a kind of thing: "politics, music, sports", "video games"
    r"(?:[,，、\"'“(/:：]|\bor|\band)\s*(?:music|videos?|audio|graphs?|images?|pictures?)"
    r"\s*(?=[,，、\"'”)/]|[.?]\s*\Z| or\b| and\b)"
    r"|\bvideo (?:games?|players?|streaming)\b|\bmusic videos?\b|\bplot (?:points?|twists?|of)\b"
    r"|\b(?:movie|film|story|book|key|novel)(?:'s)? plots?\b|\b(?:kinds?|types?|pieces?|genres?) of (?:music|video games?)\b"
    r"|\bmusic (?:genres?|history|theory)\b|\bpop(?:ular)? music\b|\b(?:venn|uml) diagrams?\b",
    re.IGNORECASE,
)


def names_medium(instruction: str) -> str | None:
    """A picture, sound or file that the task asks for; not one in a list of subjects."""
    hit = _KEYWORD.search(_AS_A_SUBJECT.sub(" ", instruction))
    return hit.group() if hit else None


# ---------------------------------------------------------------- refusals

_SERVES = (
    r"(?:help|assist|provid|answer|generat|creat|writ|access|brows|compl[yie]|fulfil|complet|do (?:that|this|so)|se[ae]"
    r"|view|open|produc|offer(?:ing)? (?:advice|an)|giv(?:e|ing) (?:you|advice|an?|that|out)|discuss|engag|support"
    r"|respond|process|perform|display|translat|summari[sz]|predict|determin|search|retriev|look up|recommend|continue"
    r"|share|verify|read (?:the|your|this|that)|draw|listen|watch|download|carry out|tell you|speculat|facilitat)"
)
_NOT_ABLE = (
    r"(?:can['’]?t|can ?not|could ?n['’]?o?t|(?:will not|won['’]t) be able to"
    r"|(?:am|are|['’]m|['’]re) (?:unable|incapable"
    r"|not (?:able|allowed|permitted|in a position|capable|equipped|programmed|designed|comfortable))(?: to| of)?)"
)
_SORRY = (
    r"(?:(?:I['’]m|I am|we are|we['’]re) (?:\w+ly |very |so )?(?:sorry|afraid)|sorry"
    r"|(?:my |please accept my )?apologies|I apologi[sz]e|unfortunately|regrettably)"
)
_OPENING = r"(?:[\w ,']{0,30}, )?"  # "Thank you for asking, "
_SELVES = (  # anywhere: speaking of itself
    r"\b(?:as|being|(?:I['’]m|I am)(?: just| only| merely| simply)?) (?:an?|your) (?:[\w-]+ ){0,2}?(?:AI|LLM|chat ?bot"
    r"|artificial intelligence|(?:large )?language model|(?:virtual|digital) assistant)\b(?![-’'])"
    r"(?: (?:language )?model| assistant| system)?(?=[^\w-]|\Z)",
    r"\bmy (?:training data|knowledge cut-?off|programming)\b",
    r"(?:作为|身为|我(?:只|仅仅?)?是)(?:一个|一名|一种|一款|您的|你的)?(?:大型)?"
    r"(?:AI|人工智能|语言模型|大模型|(?:智能|虚拟)助[手理]|聊天机器人)|我的训练数据",
)
_REFUSALS = (  # at the start
    # sorry, and then no
    rf"{_SORRY}\b[^.\n]{{0,60}}?\b(?:I|we)\b['’]?[^.\n]{{0,25}}?{_NOT_ABLE}(?: \w+ly)? {_SERVES}",
    # no
    rf"I(?:['’]m| am)? ?(?:really |simply |just )?{_NOT_ABLE}(?: \w+ly)? {_SERVES}",
    rf"{_OPENING}I (?:must|(?:will |would )?have to|need to) (?:\w+ )?(?:decline|refuse|pass on)\b",
    r"I (?:won['’]t|will not|refuse to|decline to)"
    r" (?:help|assist|provide|answer|generate|create|write|comply|produce|do)\b",
    rf"{_OPENING}I (?:(?:currently )?(?:do not|don['’]t) (?:currently )?have|lack) (?:the |any )?"
    r"(?:ability to|capabilit|access to|means to|permission to|real-time"
    r"|(?:enough|sufficient) (?:information|context|detail)"
    r"|personal (?:opinion|experience|feeling|preference|belief)|information (?:about|on) that)",
    rf"{_OPENING}it(?: is|['’]s| would be| would not be) (?:not )?(?:im|in)?(?:possible|appropriate) for me to\b",
    r"(?:that|this|your request|the request|what you ask|answering)[^.\n]{0,30}"
    r"(?:beyond|outside|not within|against) (?:of )?(?:what I|my)\b",
    # 中文
    r"(?:(?:[很非十万]?[常分]?(?:抱歉|遗憾|对不起|不好意思)|恕)[，,。！\s]*.{0,14}?"
    r"(?:不能|无法|没法|没有(?:办法|权限|能力)|不具备|不便|不可以|不会|无能为力))",
    r"(?:您好[，,！])?(?:目前|暂时)?我(?:目前|暂时|确实|实在|们)?(?:不能|无法|没法|没有办法|不便|没有能力|不具备|没有权限)"
    r".{0,12}?(?:帮|提供|回答|协助|完成|生成|满足|访问|查看|打开|讨论|处理|执行|回应|给出|预测|判断|浏览)",
    r".{0,14}超出了?我的.{0,8}(?:能力|知识|范围)|.{0,10}我(?:必须|只能|不得不|需要)(?:拒绝|谢绝)",
)
_SELF = re.compile("|".join(_SELVES), re.IGNORECASE)
_REFUSAL = re.compile(rf"\W*(?:{'|'.join(_REFUSALS)})", re.IGNORECASE)


def refusal(answer: str) -> str | None:
    """How an answer declines, or speaks of itself as a model."""
    hit = _REFUSAL.match(answer) or _SELF.search(answer)
    return one_line(hit.group()) if hit else None


# ---------------------------------------------------------------- pieces of prompts

_PHRASES = (  # anywhere
    # ours
    r'"(?:instances|instructions|classification)"\s*:|(?:Instances|Examples) wanted, at most|Answer with JSON',
    r"用 ?JSON ?回答|(?:实例|例子)数上限",
    r"\$(?:instruction|question|passage|count)\b|\{\{?(?:instruction|question|context|passage|user_input)\}?\}",
    # Alpaca's and Self-Instruct's
    r"Below is an instruction that describes|appropriately completes the request|<noinput>",
    r"[Cc]ome up with (?:a (?:series|set) of|\d+) (?:diverse |new |more )*(?:task|instruction)s?\b",
    # templates that models were tuned on
    r"A chat between a curious (?:user|human)",
    r"You are (?:ChatGPT|an AI assistant|an? (?:expert|advanced|large) (?:AI|language)"
    r"|a helpful(?:,| and| AI)?[\w ,]{0,30}assistant)",
    r"以下是一[条个]?(?:描述|关于)任务的(?:指令|说明)|根据上述(?:指令|提示)(?:生成|回答)",
    r"请[以用] ?JSON ?(?:格式)?(?:回答|输出|返回)",
    r"你是一[个名位](?:有用|乐于助人|有帮助|专业|人工智能|AI|智能)的?[\u4e00-\u9fffA-Z]{0,6}助[手理]",
)
_LINE_STARTS = (
    r"Class label\s*:|(?:Task|Example) \d+\s*[:.]\s*(?:Instruction|Input|Q)",
    r"\d{1,3}[.)] ?(?:Instruction|Input|Output):|;;",
    r"#{2,4} ?(?:Instruction|Response|Input|Output|Human|Assistant|System|User)\b ?:?",
    r"\[System\]|\[?System (?:prompt|message)\]?\s*[:：]",
    r"#{2,4} ?(?:指令|输入|输出|回答|回复|用户|助手)[:：]?$|系统(?:提示词?|消息)[:：]",
)
_PHRASE, _LINE_START = re.compile("|".join(_PHRASES)), re.compile("|".join(_LINE_STARTS))
_ROLES = re.compile(  # an answer that says who speaks, or plays both sides
    r"\A\W*(?:Assistant|AI|Bot|System|助手|机器人)\s*[:：]"
    r"|\n\s*(?:User|Human|Q|用户|问)\s*[:：][^\n]*\n+\s*(?:Assistant|AI|Bot|A|助手|答)\s*[:：]"
    r"|\n\s*(?:User|Human|用户)\s*[:：][^\n]*\Z"
)
_TALK = re.compile(
    r"dialog|conversation|chat|\bbots?\b|robot|\bscripts?\b|\bAI\b|assistant|interview|Q ?& ?A|FAQ|quiz|transcript"
    r"|对话|聊天|机器人|助手|问答|采访|剧本",
    re.IGNORECASE,
)
PLACEHOLDERS = re.compile(
    r"[\s\"'`(\[<]*(?:no ?input|n/?a|none|not applicable|no input (?:required|needed|given)"
    r"|无输入|无需输入)[\s\"'`)\]>.]*",
    re.IGNORECASE,
)


def prompt_piece(text: str) -> str | None:
    """A piece of a prompt, of ours or of the templates that models were tuned on."""
    hit = _PHRASE.search(text) or next(filter(None, map(_LINE_START.match, text.splitlines())), None)
    return hit.group() if hit else run_of_template(text)


def other_speaker(answer: str, asked: str) -> str | None:
    """Where an answer speaks for the user, too, or names its speaker, though no conversation was asked for."""
    hit = _ROLES.search(answer)
    return one_line(hit.group()) if hit and not _TALK.search(asked) else None


_RUN_OF_WORDS, _RUN_OF_HAN, _STEP = 8, 13, 4
_PIECE = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_TEMPLATES = Path(__file__).parent.parent.parent / "prompts"


def run_of_template(text: str) -> str | None:
    """Eight words, or thirteen Han characters, in a row as a shipped template has them."""
    templates, beginnings = _templates()
    pieces = _PIECE.findall(text.casefold())
    for at in range(0, len(pieces) - _STEP + 1, _STEP):  # a run holds four pieces that begin at a multiple of four
        if tuple(pieces[at : at + _STEP]) not in beginnings:
            continue
        length = _RUN_OF_HAN if "\u3400" <= pieces[at] <= "\u9fff" else _RUN_OF_WORDS
        for start in range(max(0, at + _STEP - length), min(at, len(pieces) - length) + 1):
            run = " ".join(pieces[start : start + length])
            if any(f" {run} " in template for template in templates):
                return run
    return None


@cache
def _templates() -> tuple[list[str], frozenset[tuple[str, ...]]]:
    """The words of every shipped template in a row, and all fours of them."""
    split = [_PIECE.findall(path.read_text(encoding="utf-8").casefold()) for path in sorted(_TEMPLATES.glob("*/*.md"))]
    fours = {tuple(pieces[at : at + _STEP]) for pieces in split for at in range(len(pieces) - _STEP + 1)}
    return [f" {' '.join(pieces)} " for pieces in split], frozenset(fours)


# ---------------------------------------------------------------- Self-QA: what a pair that stands alone does not hold

_POINTING = re.compile(
    r"\b(?:this|these)\b"
    r"|\b(?:in|from|by|of|to|does|do|is|what|how|as) (?:the|that) (?:given |above |following |provided )?"
    r"(?:text|passage|article|document|paragraph|excerpt|author|section|chapter|page)\b"
    r"|\b(?:the|that) (?:above|aforementioned|following|given|provided)\b|\bmentioned (?:above|earlier|here|in)\b"
    r"|本文|本章|本节|本段|该文|(?<![论論])文中|文章中?|上文|下文|上述|前述|如上|材料中|段落中|作者"
    r"|这(?!样|么说|就)|(?<!应)(?<!活)该(?!不该|死)|此(?:文|处|外|类|项|法|时|种)?(?=[，。？的中])",
    re.IGNORECASE,
)
_LEAKING = re.compile(
    r"\b(?:based on|according to|as (?:stated|mentioned|described|noted|shown|discussed|explained|outlined) (?:in|by)"
    r"|per|from|in) (?:the|this|that) (?:given |above |following |provided )?"
    r"(?:text|passage|article|document|paragraph|excerpt|context|author|quotes?)\b"
    r"|\bthe (?:text|passage|article|excerpt|author|paragraph)s?"
    r" (?:says?|states?|mentions?|describes?|explains?|notes?|does|do|is|provides?|discusses|suggests?|indicates?)\b"
    r"|(?:根据|依据|基于|按照)(?:本|该|此|这篇|上述|以上|所给|给定|提供的|原)?(?:文本?|文章|材料|段落|资料|内容)"
    r"|(?:从|如)(?:本|该|此|这篇|上述|以上|原)(?:文|文章|材料|段落|资料)"
    r"|本文|(?<![论論])文中|该文|这篇文章|(?:文章|作者|材料|原文)(?:中)?(?:提到|指出|说|认为|写道|描述|介绍)",
    re.IGNORECASE,
)
_DECLINING = re.compile(
    r"\b(?:does|do|did|is|are|was) not (?:\w+ )?(?:say|state|mention|specify|provide|answer|contain|mentioned|specified"
    r"|stated|provided|given)\b|\b(?:cannot|can't|can not) be (?:answered|determined)\b"
    r"|\bno information\b|\bi (?:do not|don't) know\b"
    r"|(?:没有|未|并未)(?:明确)?(?:提到|提及|说明|提供|给出|回答)|无法(?:回答|得知|确定)|不得而知",
    re.IGNORECASE,
)


def points_away(question: str) -> str | None:
    """Where a question points at a text, or at something that only the text would show."""
    hit = _POINTING.search(question)
    return hit.group() if hit else None


def speaks_of_source(answer: str) -> str | None:
    """Where an answer speaks of the passage it was read from."""
    hit = _LEAKING.search(answer)
    return hit.group() if hit else None


def says_unanswered(answer: str) -> str | None:
    """Where an answer says that its passage lacks it."""
    hit = _DECLINING.search(answer)
    return hit.group() if hit else None
