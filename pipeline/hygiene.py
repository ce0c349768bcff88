"""What a hostile document may hold, made harmless and counted: control tokens, invisible and bidirectional characters.

A document is data. Its text goes into prompts and, quoted, into training records; `<|im_end|>` in it could end a
turn there, and a character that nobody sees could carry what nobody reviewed. Both happen before offsets are
counted, so quotes match the cleaned text exactly. Instructions to the model are left as they stand, for a person to
see, and found by `hidden_instruction`, upon which the `injection` filter turns their records away for review.
"""

from __future__ import annotations

import re
from collections import Counter

from pipeline.text import replace_surrogates, simplified

# What the chat templates in use reserve: ChatML, Llama 2 and 3, Gemma, Phi, DeepSeek, Mistral, GPT-2, GLM; reasoning
# marks; and what tokenizers keep in reserve (Gemma, Baichuan, T5) or for filling in the middle (StarCoder).
CONTROL_TOKEN = re.compile(
    r"<\|[a-zA-Z0-9_]{2,40}\|>|<｜[^<>｜\n]{2,40}｜>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|\[gMASK\]|<</?SYS>>"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|pad|unk|s|think|tool_call|tool_response)>"
    r"|<(?:unused|reserved_|extra_id_)\d{1,4}>|<(?:sop|eop|fim_(?:prefix|middle|suffix|pad))>"
)
_HARMLESS = str.maketrans({"<": "‹", ">": "›", "[": "［", "]": "］"})
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Joiners mean something between letters of some scripts and between emoji; elsewhere they only hide.
_INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\U000e0000-\U000e0fff\ufff9-\ufffb]"
    "|(?<![\u0600-\u1fff\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ufffe\uffff]")


def clean(text: str) -> tuple[str, Counter[str]]:
    """The text made harmless, lines ended by a newline alone, and how much of what was changed."""
    counts: Counter[str] = Counter()
    surrogates = replace_surrogates(text)
    counts["surrogates"] = surrogates.count("\ufffd") - text.count("\ufffd")
    text = surrogates.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    for name, pattern in (("bidirectional", _BIDI), ("invisible", _INVISIBLE), ("control_characters", _CONTROL)):
        text, counts[name] = pattern.subn("", text)
    text, counts["control_tokens"] = CONTROL_TOKEN.subn(lambda found: found.group().translate(_HARMLESS), text)
    return text, +counts


def break_control_tokens(text: str) -> str:
    """The text with a blank behind the first sign of each control token, so that it is one no more."""
    return CONTROL_TOKEN.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


# Phrases that speak to a model rather than to a reader. A page about prompt injection holds them too; that is why
# they are flagged for a person and not cut out.
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b[^.\n]{0,30}\b(?:previous|prior|above|earlier|preceding|all|any|your)\b"
    r"[^.\n]{0,30}\b(?:instructions?|prompts?|rules?|guidelines?|directions?|context)\b"
    r"|\byou are now\b[^.\n]{0,60}\b(?:assistant|model|mode|ai|dan|jailbroken|unrestricted)\b"
    r"|\b(?:reveal|print|repeat|output|show|leak)\b[^.\n]{0,30}\b(?:system|initial|hidden) (?:prompt|instructions?)\b"
    r"|\b(?:do not|don't|never) (?:tell|inform|mention (?:this|it) to|reveal (?:this|it) to) the"
    r" (?:user|human|reader)\b"
    r"|\b(?:new|updated|important) (?:system )?instructions?(?: for (?:the )?(?:ai|model|assistant|llm))?\s*[:：]"
    r"|\b(?:attention|note|message|instructions?) (?:to|for) (?:all |any |the )?(?:ai|llms?|language models?"
    r"|assistants?)\b"
    r"|\bas an? (?:ai|language model|assistant),? you (?:must|should|will|have to)\b"
    r"|\b(?:answer|respond|reply)\b[^.\n]{0,20}\b(?:only|always|every question)\b[^.\n]{0,20}\bwith\b"
    r"|(?<!不要)(?<!不得)(?<!不能)(?<!不可)(?<!切勿)(?<!请勿)(?<!别)(?:忽略|无视|忘[记掉]|不要理会)[^。\n]{0,12}"
    r"(?:之前|以上|先前|前面|上述|所有|任何)[^。\n]{0,8}(?:指令|指示|提示|规则|要求|说明)"
    r"|(?:以上|上述|之前|前面)的?(?:所有|全部)?(?:指令|指示|提示|规则|要求)[^。\n]{0,6}(?:忽略|作废|无效)"
    r"|(?:你现在|从现在(?:开始|起)[，,]?你)(?:是|扮演|将|要|必须)[^。\n]{0,16}(?:AI|助[手理]|模型|机器人|人工智能|不受|没有)"
    r"|(?:如果|假如|若)你是(?:一个)?(?:AI|人工智能|大?语言模型|大模型|机器人)"
    r"|作为(?:一个)?(?:AI|人工智能|大?语言模型|大模型|AI助手)[，,]?你(?:必须|应该|应当|要|需要|只能)"
    r"|(?:输出|泄露|显示|重复)[^。\n]{0,8}系统(?:提示(?![音框符栏])|指令(?!集))|(?:不要|切勿|请勿)(?:告诉|告知|透露给)用户"
    r"|(?:致|告|给)(?:所有)?(?:AI|人工智能|大?语言模型|大模型|助手|AI助手)(?:的(?:提示|指令|说明|留言))?[:：]"
    r"|(?:新的?|重要)(?:系统)?指令[:：]",
    re.IGNORECASE,
)


def hidden_instruction(text: str) -> str | None:
    """The first phrase that speaks to a model instead of a reader; None where there is none."""
    found = _INSTRUCTION.search(simplified(" ".join(text.split())))
    return found.group() if found else None
