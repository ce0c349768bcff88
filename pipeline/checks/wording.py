"""Phrases that give a text away: refusals, pieces of prompts, what a text model cannot do, a question that points.

Each function returns the phrase it found, in simplified characters, or None. English and Chinese; a phrase that good
answers hold too is not here, or only where it stands (at the start of an answer, at the start of a line).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pipeline.text import one_line, simplified

# ---------------------------------------------------------------- tasks that a text model cannot do

# Self-Instruct's list and Alpaca's five more; the Chinese ones are ours, made so as not to hit 计划 or 动画一集.
KEYWORDS_EN = (
    "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
).split()
KEYWORDS_EN.append("go to")
KEYWORDS_ZH = (
    "图片 图像 照片 图表(?!现) 流程图 示意图 地图(?!舌) 文件 视频 音频 绘制 (?<![动漫绘油国版壁字年描刻])画[图出一]"
    " 看图 截图 附件 播放[^，。频]{0,6}[歌曲乐] (?:生成|制作|设计|做)[一几]?[张幅][^，。]{0,8}图".split()
)
_KEYWORD = re.compile(  # \b would see no border between 开 and file
    rf"(?<![a-z0-9_])(?:{'|'.join(KEYWORDS_EN)})(?![a-z0-9_])|{'|'.join(KEYWORDS_ZH)}", re.IGNORECASE
)
_AS_A_SUBJECT = re.compile(  # among others, or as a kind of thing: "politics, music, sports", "video games"
    r"(?:[,，、\"'“(/:：]|\bor|\band)\s*(?:music|videos?|audio|graphs?|images?|pictures?)"
    r"\s*(?=[,，、\"'”)/]|[.?]\s*\Z| or\b| and\b)"
    r"|\bvideo (?:games?|players?|streaming)\b|\bmusic videos?\b|\bplot (?:points?|twists?|of)\b"
    r"|\b(?:movie|film|story|book|key|novel)(?:'s)? plots?\b"
    r"|\b(?:kinds?|types?|pieces?|genres?) of (?:music|video games?)\b"
    r"|\bmusic (?:genres?|history|theory)\b|\bpop(?:ular)? music\b|\b(?:venn|uml) diagrams?\b",
    re.IGNORECASE,
)


def names_medium(instruction: str) -> str | None:
    """A picture, sound or file that the task asks for; not one in a list of subjects."""
    hit = _KEYWORD.search(_AS_A_SUBJECT.sub(" ", simplified(instruction)))
    return hit.group() if hit else None


WRITE_A_PROGRAM = re.compile(r"\s*(?:write a program|(?:编写|写)一?个?程序(?!员))", re.IGNORECASE)

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
_SORRY_ZH = r"(?:(?:真|真的|实在|非常|十分|很|万分|深感)?(?:抱歉|遗憾|对不起|不好意思)|恕)"
_UNABLE_ZH = (
    r"(?:不能|无法|没法|没有?(?:办法|权限|能力)|不具备|不便|不可以|难以|无权|不会(?=生成|回答|绘制|画|协助|帮[您你助]|提供[^，。]{0,8}(?:信息|内容|帮助|协助|指导|方法))"
    r"|(?:尚未|还没有?|暂未)(?:学会|学习|掌握))"
)
_SERVES_ZH = (
    r"(?:帮|提供|[回解作]答|协助|完成|生成|创作|撰写|满足|访问|查[看询阅]|打开|讨论|处理|执行|回应|回复|给出|给您|预测|判断|浏览|联网|获取"
    r"|观看|播放|识别|绘制|翻译|透露|推荐|从命|遵从|为您)"
)
_BEYOND_ZH = r"(?:帮|[回解]答|处理|提供|完成|满足)不[了到上]|[做办]不到|爱莫能助|无能为力|无可奉告"
_SELVES = (  # anywhere: speaking of itself
    r"\b(?:as|being|(?:I['’]m|I am)(?: just| only| merely| simply)?) (?:an?|your) (?:[\w-]+ ){0,2}?(?:AI|LLM|chat ?bot"
    r"|artificial intelligence|(?:large )?language model|(?:virtual|digital) assistant)\b(?![-’'])"
    r"(?: (?:language )?model| assistant| system)?(?=[^\w-]|\Z)",
    r"\bmy (?:training data|knowledge cut-?off|programming)\b",
    r"(?:作为|身为|我(?:只|仅仅?)?是)(?:一[个名种款]|您的|你的)?(?:大型?)?"
    r"(?:(?:AI|人工智能|(?:大|纯?文本|语言|对话)模型|智能|虚拟|聊天|对话)(?:语言)?(?:模型|助[手理]|系统|程序|机器人)?)(?<!智能)(?<!虚拟)(?<!聊天)(?<!对话)"
    r"(?=[，,。；;、！!\s]|我|\Z)",
    r"(?:作为|身为)(?:一[个名种款])?人工智能(?=[，,我])|我的(?:训练数据|知识库?(?:截[止至]|更新|范围))",
    r"我(?:是|叫)[^，。\n]{0,12}[，,]?(?:是?一[个款])?由[^，。\n]{2,14}(?:开发|训练|研发|推出)的[^，。\n]{0,10}(?:模型|助[手理]|机器人)",
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
    rf"(?:{_SORRY_ZH}|我(?:很|非常)?(?:乐意|愿意|想)[^。！？\n]{{0,16}}[，,](?:但|不过|可))[，,。！!～~\s]*[^。！？\n]{{0,20}}?"
    rf"(?:{_UNABLE_ZH}[^。！？\n]{{0,12}}?{_SERVES_ZH}|{_BEYOND_ZH}|没有?[找查]到[^。\n]{{0,10}}(?:信息|内容|资料))",
    rf"(?:您好[，,！])?(?:目前|暂时|对此|由于[^，。\n]{{2,16}}，)?我(?:目前|暂时|确实|实在|们|也)?"
    rf"(?:{_UNABLE_ZH}[^。！？\n]{{0,12}}?{_SERVES_ZH}|{_BEYOND_ZH})",
    rf"(?:(?:[这该此]类?|您的|你的)(?:个?问题|请求|内容|话题)|根据(?:相关|有关)?(?:法律|规定|政策))[^。\n]{{0,16}}?"
    rf"(?:我[^。\n]{{0,6}}?{_UNABLE_ZH}|(?:无法|不能|不予)(?:回答|提供|显示|讨论)|我?{_BEYOND_ZH})",
    r"(?:您好[，,！!])?(?:您|你)?(?:似乎|好像)?(?:没有|并未|尚未|还没有?|忘了)提供[^，。\n]{0,14}"
    r"(?:内容|文[本章]|信息|句子|段落|材料|代码|数据)[^。\n]{0,6}[，。][^。\n]{0,4}请",
    r"(?:您好[，,！!])?我不太?(?:明白|理解|清楚)(?:您|你)的(?:意思|问题|请求)",
    r"无法(?:提供|回答|满足|完成|显示|处理)(?:您|你|该|此|这|相关)|(?:让我们|我们|要不)?换个?话题",
    r".{0,14}超出了?我的.{0,8}(?:能力|知识|范围)|.{0,10}我(?:必须|只能|不得不|需要)(?:拒绝|谢绝)",
)
_SELF = re.compile("|".join(_SELVES), re.IGNORECASE)
_REFUSAL = re.compile(rf"\W*(?:{'|'.join(_REFUSALS)})", re.IGNORECASE)


def refusal(answer: str) -> str | None:
    """How an answer declines, or speaks of itself as a model."""
    answer = simplified(answer)
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
    r"|[（(\[【]?(?:无|不适用|[无没不][须需]?(?:有|要)?(?:提供|额外|其他)?的?输入)[）)\]】]?。?)[\s\"'`)\]>.]*",
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


# ---------------------------------------------------------------- links

_LINK = re.compile(r"\b(?:https?://|www\.)[^\s<>\"')\]]+")
_HARMLESS_LINK = re.compile(r"\bexample\.(?:com|org|net)|^(?:https?://)?[\w.-]+/?$")  # a site alone is rarely invented


def new_link(answer: str, given: str) -> str | None:
    """The first link that is not among what was given; example domains and bare sites do not count."""
    links = (found.rstrip(".,;") for found in _LINK.findall(answer))
    return next((link for link in links if link not in given and not _HARMLESS_LINK.search(link)), None)


# ---------------------------------------------------------------- Self-QA: what a pair that stands alone does not hold

_THIS_TEXT_ZH = (
    r"(?<![日基根样剧资版文脚课原标副读写书这该成])本(?:文(?!化|明)|章|节|段|书|篇|研究|论文|报告|教程|手册|指南|办法|规定|条例|制度|合同|协议|产品|系统|平台|软件|设备|公司)|[这该此]篇?文|(?<!上)下文"
    r"|(?:(?<![\u4e00-\u9fff])|(?<=[据从在问于么如见]))(?:上文|文中(?![心间考文]))|[原前课]文[中里]"
    r"|(?<![中写A-Za-z])文章(?=[中里]|的?(?:作者|主[旨题要]|中心|观点|标题|结论|内容|论点|开头|结尾)|认为|指出|提到|提及|介绍|讨论|说明"
    r"|列举|主要|为什么|如何|是|推荐|建议|给出|没有|写|说|描述)"
    r"|(?<![的》」”』之合工创写著操制劳者是])作者(?!权)"
)
_POINTING = re.compile(
    r"\b(?:this|these)\b"
    r"|\b(?:in|from|by|of|to|does|do|is|what|how|as) (?:the|that) (?:given |above |following |provided )?"
    r"(?:text|passage|article|document|paragraph|excerpt|author|section|chapter|page)\b"
    r"|\b(?:the|that) (?:above|aforementioned|following|given|provided)\b|\bmentioned (?:above|earlier|here|in)\b"
    rf"|{_THIS_TEXT_ZH}"
    r"|(?<![\u4e00-\u9fff])(?:上面|前面|下面|下列|以下)(?=的|提到|提及|介绍|所|哪|列出|讨论|这|几)|(?<![\u4e00-\u9fff])以上(?=哪|这|几|方法|步骤|内容|说法)"
    r"|上述|前述|如上|(?<![\u4e00-\u9fff])(?:材料|资料|段落|文档)[中里]|(?<![\u4e00-\u9fff])[图表]\s?\d"
    r"|\A(?:请问)?(?:它们?|[他她]们?)(?=的|是|为什|有|在|如何|怎|和|与|会|能|可|需|主要|采用|使用|提出)|\A(?:请问)?其(?=[主中他目作优缺特原])",
    re.IGNORECASE,
)
_LEAKING = re.compile(
    r"\b(?:based on|according to|as (?:stated|mentioned|described|noted|shown|discussed|explained|outlined) (?:in|by)"
    r"|per|from|in) (?:the|this|that) (?:given |above |following |provided )?"
    r"(?:text|passage|article|document|paragraph|excerpt|context|author|quotes?)\b"
    r"|\bthe (?:text|passage|article|excerpt|author|paragraph)s?"
    r" (?:says?|states?|mentions?|describes?|explains?|notes?|does|do|is|provides?|discusses|suggests?|indicates?)\b"
    r"|(?:根据|依据|基于|按照|从|如)(?:本|该|此|这[篇段份]|上述|以上|所给的?|给定的?|所?提供的|给出的|现有的?|已有的?)"
    r"(?:文本?|文章|文档|材料|段落|资料|内容|信息|描述)"
    r"|(?:根据|依据|基于|按照)(?:文章|材料|段落|资料|原文|文中|文档)(?=[，,。：:中里]|可知|所述|来看|显示|的(?:描述|说法|介绍|内容|叙述|记载|观点))"
    rf"|{_THIS_TEXT_ZH}(?<!以下)"
    r"|(?<![\u4e00-\u9fff])(?:材料|资料|段落|文档|原文)[中里]?(?:没有|未|提到|指出|说|认为|写道|描述|介绍|显示|表明)",
    re.IGNORECASE,
)
_DECLINING = re.compile(
    r"\b(?:does|do|did|is|are|was) not (?:\w+ )?(?:say|state|mention|specify|provide|answer|contain|mentioned|specified"
    r"|stated|provided|given)\b|\b(?:cannot|can't|can not) be (?:answered|determined)\b"
    r"|\bno information\b|\bi (?:do not|don't) know\b"
    r"|(?:没有|未|并未)(?:明确|具体)?(?:提到|提及|说明|提供|给出|回答)|无法(?:从[^，。]{1,8})?(?:回答|得知|获知|确定|判断)"
    r"|不得而知|无从(?:得知|知晓|回答|判断)|(?:我|并|尚|还)不(?:太)?(?:知道|清楚)|\A不(?:知道|清楚)"
    r"|(?<![如在当若果])(?:没有|暂无|并无)(?:任何|与[^，。]{1,12})?(?:相关|有关)的?(?:信息|内容|资料|说明|描述|介绍)(?=[，。！]|\Z)",
    re.IGNORECASE,
)


def points_away(question: str) -> str | None:
    """Where a question points at a text, or at something that only the text would show."""
    question = simplified(question)
    hit = _POINTING.search(question) or _LEAKING.search(question) or _DEMONSTRATIVE_ZH.search(_before_comma(question))
    return hit.group() if hit else None


# 该 and 这 before a noun; not 应该, 该怎么做, 这样做 or LoRA这种方法. Behind a clause they may point at that.
_DEMONSTRATIVE_ZH = re.compile(
    r"(?<![A-Za-z0-9》”」』）)])这(?!样|么|就)|(?<![彼因从由如故至])此(?:方法|技术|模型|研究|书|项目|方案|过程|现象|算法|[类种项法])(?!外)|(?<![应活不])该(?![不怎咋如何死是有把被让吃买去找在从由往以何再另什哪几谁"
    r"跟]|用(?![户法途例语品词])|选(?![项手题集])|做(?!法)|[说写](?!法|明|作)|先(?![进生])|多[少大久长高吃喝做用]|要(?![求点素])|会(?![议员])"
    r"|[对向](?!象|量)|按(?!钮|键)|学(?![校院科者生])|采[取用]|注意|准备|选择|使用|进行|检查|遵[循守]|考虑|联系|具备|包[含括]|设[为成]|调[整成]"
    r"|避免|保持|负责|承担|怀疑|服用|治疗|就医|接受|需要|警惕|重视|关注|优先|立[即刻]|尽|马上|处理|根据)"
)
_CLAUSE = re.compile(r"[，。；：！？,;:!?—]")
_SHORTEST_CLAUSE = 6  # characters: "请问，该方法" has told nothing yet


def _before_comma(question: str) -> str:
    """A question up to its first comma; all of it where too little stands before that to be pointed at."""
    end = _CLAUSE.search(question, _SHORTEST_CLAUSE)
    return question[: end.start()] if end else question


def speaks_of_source(answer: str) -> str | None:
    """Where an answer speaks of the passage it was read from."""
    hit = _LEAKING.search(simplified(answer))
    return hit.group() if hit else None


def says_unanswered(answer: str) -> str | None:
    """Where an answer says that its passage lacks it."""
    hit = _DECLINING.search(simplified(answer))
    return hit.group() if hit else None
