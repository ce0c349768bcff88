"""Questions and answers from templates, in English and Chinese: correct without any model.

What a relation's phrases leave open (`kg.graph.Phrases`) is filled by its label (english.py, chinese.py). A
draft is what `--template` writes down, and what a model is asked to rephrase.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from kg.graph import Fact, Graph, Phrases, stable_hash
from kg.names import is_awkward, language_of_name, split_name
from kg.questions import Question
from kg.values import value_of
from pipeline.phrasing import chinese, english
from pipeline.text import language_of

MOST_TOLD = 64  # of a subject in a paragraph


@dataclass(frozen=True, slots=True)
class Draft:
    """A question with its answer, as the template writes it."""

    instruction: str
    output: str


class Speaker:
    """Says things about a graph in one language. `learned` holds phrases a model gave for awkward relations."""

    def __init__(self, graph: Graph, language: str, seed: int = 0) -> None:
        self.graph, self.language, self._seed = graph, language, seed
        self.learned: dict[int, Phrases] = {}
        self._complete: dict[int, Phrases] = {}

    def phrases(self, relation: int) -> Phrases:
        """The relation's phrases, none of them empty."""
        if relation not in self._complete:
            known = self.learned.get(relation) or self.graph.relation_phrases(relation, self.language)
            self._complete[relation] = complete(known, self.language)
        return self._complete[relation]

    def is_awkward(self, relation: int) -> bool:
        """Whether nobody said how the relation reads, and its key reads badly."""
        return relation not in self.learned and self.was_awkward(relation)

    def was_awkward(self, relation: int) -> bool:
        """The same, before anything was learned."""
        if self.graph.is_named(relation, self.language):
            return False
        return self.is_foreign(relation) or is_awkward(self.graph.relation_phrases(relation, self.language).label)

    def is_foreign(self, relation: int) -> bool:
        """Whether the relation has no name in the language spoken: "worked in" in Chinese, 病因 in English."""
        if self.graph.is_named(relation, self.language):
            return False
        label = self.graph.relation_phrases(relation, self.language).label
        return not label.isupper() and language_of_name(label) != self.language  # "BMI" is said in any

    def can_say(self, question: Question) -> bool:
        """Whether there is a way to put it: a relation that has the neutral form alone is no step of a path."""
        if question.kind != "path" or self.language == "zh":
            return True
        return not any(map(self._is_neutral, question.relations))

    def _is_neutral(self, relation: int) -> bool:
        known = self.graph.relation_phrases(relation, self.language)
        return not known.statement and not self.was_awkward(relation) and english.is_neutral(known.label)

    def learn(self, relation: int, phrases: Phrases) -> None:
        self.learned[relation] = phrases
        self._complete.pop(relation, None)

    # ---------------------------------------------------------------- parts

    def name(self, node: int) -> str:
        """A node's name; where others have the same one, with its type in brackets."""
        if self.graph.is_nameless(node):
            return "没有名称的条目" if self.language == "zh" else "an entry without a name"
        label = self.graph.label(node, self.language)
        types = self.graph.types.get(node)
        if types and not self.graph.is_literal(node) and len(self.graph.nodes_named(label)) > 1:
            opening, closing = ("（", "）") if self.language == "zh" else (" (", ")")
            return f"{label}{opening}{self.graph.label(types[0], self.language)}{closing}"
        return label

    def statement(self, fact: Fact) -> str:
        """A fact as a clause, with no capital and no full stop; one of several is said to be one of several."""
        statement = self.phrases(fact[1]).statement
        if self.graph.count_tails(fact[0], fact[1]) > 1:
            statement = self._one_of_several(statement, fact[1])
        return fill(statement, s=self.name(fact[0]), o=self._object(fact[1], fact[2]))

    def _object(self, relation: int, node: int) -> str:
        """An object as a sentence says it: in Chinese the 701 of a 出生年份 is 701年."""
        name, phrases = self.name(node), self.phrases(relation)
        if self.language == "zh" and name.isdigit() and chinese.is_year(phrases.label):
            return name if "{o}年" in phrases.statement else f"{name}年"
        return name

    def _one_of_several(self, statement: str, relation: int) -> str:
        label = self.phrases(relation).label
        if self.language == "zh":
            made = chinese.phrases_of(label).statement
            return made.replace("是{o}", "包括{o}") if statement == made else statement
        singular = (f"{label.removeprefix('has ')} of {{s}} is {{o}}", f"entry under “{label}” for {{s}} is {{o}}")
        several = {f"the {one}": f"one {one}" for one in singular}
        return several.get(statement, statement)

    def sentence(self, fact: Fact) -> str:
        return self._sentence(self.statement(fact))

    def _sentence(self, clause: str) -> str:
        return clause + "。" if self.language == "zh" else capital(clause) + "."

    def listed(self, nodes: Sequence[int]) -> str:
        """ "A, B and C"; in Chinese "A、B和C", but without 和 where a name holds one: 战争与和平."""
        names = [self.name(node) for node in nodes]
        comma, and_ = ("、", "和") if self.language == "zh" else (", ", " and ")
        if self.language == "zh" and re.search("[和与及、，]", "".join(names)):
            comma = and_ = "；" if re.search("[、，]", "".join(names)) else "、"
        return comma.join(names[:-1]) + and_ + names[-1] if len(names) > 1 else names[0]

    def _ask(self, question: Question) -> str:
        """The question for the other end of a single relation."""
        relation, asked = question.relations[0], question.asked[0]
        if question.inverse:
            return self._opened(fill(self.phrases(relation).head, o=self._object(relation, asked)))
        return self._opened(fill(self.phrases(relation).tail, s=self.name(asked)))

    def _opened(self, question: str) -> str:
        """A question with a capital at its start; Chinese has none, and iPhone keeps its own."""
        return question if self.language == "zh" else capital(question)

    def _blank(self, question: Question, at: int = 0) -> str:
        """The statement with dots for what is asked."""
        relation, asked = question.relations[at], question.asked[at]
        statement, dots = self.phrases(relation).statement, "……" if self.language == "zh" else "…"
        if question.inverse:
            return fill(statement, s=dots, o=self._object(relation, asked))
        return fill(statement, s=self.name(asked), o=dots)

    def _variant(self, question: Question, texts: Sequence[str]) -> str:
        """One of several ways to say it, by hash, so that a data set is not all alike."""
        keys = [self.graph.key_fact(fact) for fact in question.facts]
        return texts[stable_hash(self._seed, "variant", question.kind, question.asked and keys) % len(texts)]

    # ---------------------------------------------------------------- whole drafts

    def draft(self, question: Question, *, scenario: bool = False) -> Draft:
        """The question and its answer."""
        made = _DRAFTS[self.language][question.kind](self, question)
        if not scenario:
            return made
        lead = self._variant(question, _LEADS[self.language]).replace("{s}", self.name(question.asked[0]))
        return replace(made, instruction=lead + made.instruction.replace("判断对错：", "下面的说法正确吗？"))

    def truth(self, question: Question) -> str:
        """The facts behind a question as sentences."""
        if len({fact[:2] for fact in question.facts}) == 1 < len(question.facts):
            return self._sentence(self._together(question.facts))
        return ("" if self.language == "zh" else " ").join(map(self.sentence, question.facts))

    def sentences(self, question: Question) -> list[str]:
        """The facts behind a question, a sentence each."""
        clauses = self.steps(question) if question.kind == "path" else map(self.statement, question.facts)
        return list(map(self._sentence, clauses))

    def steps(self, question: Question) -> list[str]:
        """A path's facts as clauses; what it goes through and has no name is described by way of what comes before."""
        clauses, called = [], None
        for fact in question.facts:
            if self.graph.is_nameless(fact[2]):
                called = fill(self.phrases(fact[1]).ref, s=called or self.name(fact[0]))
            else:
                clauses.append(self._together([fact], called))
                called = None
        return clauses

    def paragraph(self, subject: int) -> str:
        """What the graph says of a subject: MOST_TOLD relations at most, and as many objects of each."""
        told = self._tell(subject, self.name(subject), {subject})
        return ("" if self.language == "zh" else " ").join(told)

    def _tell(self, subject: int, called: str, seen: set[int]) -> list[str]:
        """A subject's facts as sentences; what has no name is described by way of it, and told in its place."""
        told: list[str] = []
        keys = self.graph.keys  # in whose order a fact more moves no other
        for relation in sorted(self.graph.relations_of(subject, MOST_TOLD), key=self.graph.relation_keys.__getitem__):
            objects = sorted(self.graph.tails(subject, relation, MOST_TOLD), key=keys.__getitem__)
            facts = [(subject, relation, object_) for object_ in objects if not self.graph.is_nameless(object_)]
            if facts:
                told.append(self._sentence(self._together(facts, called)))
            for object_ in objects:
                if self.graph.is_nameless(object_) and object_ not in seen:
                    seen.add(object_)
                    told += self._tell(object_, fill(self.phrases(relation).ref, s=called), seen)
        return told

    def _together(self, facts: Sequence[Fact], called: str | None = None) -> str:
        """Several objects of one subject and relation in one clause."""
        subject, relation, first = facts[0]
        called = self.name(subject) if called is None else called
        if len(facts) == 1 == self.graph.count_tails(subject, relation):
            return fill(self.phrases(relation).statement, s=called, o=self._object(relation, first))
        statement = self._one_of_several(self.phrases(relation).statement, relation)
        if statement.startswith("one ") and len(facts) > 1:
            others = ("another is " if len(facts) == 2 else "others are ") + self.listed([f[2] for f in facts[1:]])
            return f"{fill(statement, s=called, o=self.name(first))}; {others}"
        return fill(statement, s=called, o=self.listed([fact[2] for fact in facts]))


def graph_language(graph: Graph) -> str:
    """The language of a graph's names: English where there are English labels, else what most names look like."""
    tagged = {language for names in islice(graph.labels.values(), 1000) for language in names}
    if tagged:
        return "en" if "en" in tagged or "zh" not in tagged else "zh"
    return language_of(" ".join(map(split_name, (*graph.relation_keys[:200], *graph.keys[:500]))))


_LEADS = {
    "en": (
        "Someone is preparing a short talk about {s} and wants to be sure of one point. ",
        "A reader has come across {s} in an article and asks you: ",
        "You answer questions at an information desk. A visitor interested in {s} wants to know: ",
    ),
    "zh": (
        "有人正在准备一段关于{s}的讲解，想核实一点：",
        "一位读者在文章里看到了{s}，向你提问：",
        "你在咨询台值班，一位想了解{s}的访客问道：",
    ),
}


def _en_single(speaker: Speaker, question: Question) -> Draft:
    answer = speaker.name(question.answers[0])
    texts = (speaker.sentence(question.facts[0]), speaker.sentence(question.facts[0]), capital(answer) + ".")
    return Draft(speaker._ask(question), speaker._variant(question, texts))


def _en_list(speaker: Speaker, question: Question) -> Draft:
    ask = f"{speaker._ask(question)} Name all {len(question.answers)} that the knowledge graph gives."
    return Draft(ask, capital(speaker.listed(question.answers)) + ".")


def _en_count(speaker: Speaker, question: Question) -> Draft:
    ask = f"How many different entries of the knowledge graph complete the statement “{speaker._blank(question)}”?"
    return Draft(ask, f"There are {question.number} entries: {speaker.listed(question.answers)}.")


def _en_path(speaker: Speaker, question: Question) -> Draft:
    steps = speaker.steps(question)
    return Draft(_path_question(speaker, question), capital(", and ".join(steps)) + ".")


def _en_both(speaker: Speaker, question: Question) -> Draft:
    first, second = speaker._blank(question), speaker._blank(question, 1)
    ask = f"Which entries of the knowledge graph complete both “{first}” and “{second}”? Name all of them."
    return Draft(ask, capital(speaker.listed(question.answers)) + ".")


def _en_compare(speaker: Speaker, question: Question) -> Draft:
    one, other = (speaker.name(node) for node in question.asked)
    label = english.measure(speaker.phrases(question.relations[0]).label)
    if is_date(speaker.graph, question):
        ask = f"Which has the {'later' if question.more else 'earlier'} {label}, {one} or {other}?"
    else:
        ask = f"Which has the {'greater' if question.more else 'smaller'} {label}, {one} or {other}?"
    first, second = _winner_first(question)
    told = f"{capital(speaker.statement(first))}, while {speaker.statement(second)}."
    return Draft(ask, f"{capital(speaker.name(question.answers[0]))}. {told}")


def _en_claim(speaker: Speaker, question: Question) -> Draft:
    assert question.claimed is not None
    claim = speaker.sentence(question.claimed)
    asks = (
        f"True or false: {claim[:-1]}?",
        f"Is this statement correct? {claim}",
        f"Check this claim: {claim} Is it right?",
    )
    ask = speaker._variant(question, asks)
    words = ("True", "False") if ask.startswith("True") else ("Yes", "No")
    if question.truth:
        return Draft(ask, f"{words[0]}. {claim}")
    return Draft(ask, f"{words[1]}. {speaker.truth(question)}")


def _en_summary(speaker: Speaker, question: Question) -> Draft:
    name = speaker.name(question.asked[0])
    asks = (
        f"Tell me what you know about {name}.",
        f"Sum up the main facts about {name}.",
        f"Introduce {name} briefly.",
    )
    return Draft(speaker._variant(question, asks), speaker.truth(question))


def _en_absent(speaker: Speaker, question: Question) -> Draft:
    ask = f"{speaker._ask(question)} Answer from the knowledge graph alone."
    return Draft(ask, f"The knowledge graph does not say this about {speaker.name(question.asked[0])}.")


def _zh_single(speaker: Speaker, question: Question) -> Draft:
    sentence, name = speaker.sentence(question.facts[0]), speaker.name(question.answers[0])
    alone = sentence if name[-1:].isdigit() else f"{name}。"  # nobody answers "1867。"
    return Draft(speaker._ask(question), speaker._variant(question, (sentence, sentence, alone)))


def _zh_list(speaker: Speaker, question: Question) -> Draft:
    ask = f"{speaker._ask(question)}请列出知识图谱给出的全部{len(question.answers)}个答案。"
    return Draft(ask, speaker.listed(question.answers) + "。")


def _zh_count(speaker: Speaker, question: Question) -> Draft:
    ask = f"知识图谱中有多少个条目可以填入“{speaker._blank(question)}”这句话？"
    return Draft(ask, f"共有{question.number}个：{speaker.listed(question.answers)}。")


def _zh_path(speaker: Speaker, question: Question) -> Draft:
    return Draft(_path_question(speaker, question), "，".join(speaker.steps(question)) + "。")


def _zh_both(speaker: Speaker, question: Question) -> Draft:
    first, second = speaker._blank(question), speaker._blank(question, 1)
    ask = f"知识图谱中哪些条目既可以填入“{first}”，又可以填入“{second}”？请全部列出。"
    return Draft(ask, speaker.listed(question.answers) + "。")


def _zh_compare(speaker: Speaker, question: Question) -> Draft:
    one, other = (speaker.name(node) for node in question.asked)
    label = speaker.phrases(question.relations[0]).label
    how = chinese.comparative(label, more=question.more, dates=is_date(speaker.graph, question))
    whose = "谁" if chinese.of_people(label) else "哪个"
    first, second = _winner_first(question)
    answer = f"{speaker.name(question.answers[0])}。{speaker.statement(first)}，而{speaker.statement(second)}。"
    return Draft(f"{one}和{other}，{whose}的{chinese.measure(label)}{how}？", answer)


def _zh_claim(speaker: Speaker, question: Question) -> Draft:
    assert question.claimed is not None
    claim = speaker.sentence(question.claimed)
    asks = (f"判断对错：{claim}", f"下面的说法正确吗？{claim}", f"请核对这一说法是否属实：{claim}")
    if question.truth:
        return Draft(speaker._variant(question, asks), f"正确。{claim}")
    return Draft(speaker._variant(question, asks), f"错误。{speaker.truth(question)}")


def _zh_summary(speaker: Speaker, question: Question) -> Draft:
    name = speaker.name(question.asked[0])
    asks = (f"请简要介绍{name}。", f"关于{name}，你知道些什么？", f"请概括{name}的主要情况。")
    return Draft(speaker._variant(question, asks), speaker.truth(question))


def _zh_absent(speaker: Speaker, question: Question) -> Draft:
    return Draft(
        f"{speaker._ask(question)}请只根据知识图谱回答。",
        f"知识图谱没有给出{speaker.name(question.asked[0])}的这项信息。",
    )


_DRAFTS = {
    "en": {
        "tail": _en_single, "head": _en_single, "list": _en_list, "count": _en_count, "path": _en_path,
        "both": _en_both, "compare": _en_compare, "true": _en_claim, "false": _en_claim, "summary": _en_summary,
        "absent": _en_absent,
    },
    "zh": {
        "tail": _zh_single, "head": _zh_single, "list": _zh_list, "count": _zh_count, "path": _zh_path,
        "both": _zh_both, "compare": _zh_compare, "true": _zh_claim, "false": _zh_claim, "summary": _zh_summary,
        "absent": _zh_absent,
    },
}  # fmt: skip


def _path_question(speaker: Speaker, question: Question) -> str:
    """The question for the last step's object, with what leads there described and not named."""
    described = speaker.name(question.asked[0])
    for relation in question.relations[:-1]:
        described = fill(speaker.phrases(relation).ref, s=described)
    return speaker._opened(fill(speaker.phrases(question.relations[-1]).tail, s=described))


def _winner_first(question: Question) -> tuple[Fact, Fact]:
    first, second = question.facts
    return (first, second) if first[0] == question.answers[0] else (second, first)


def is_date(graph: Graph, question: Question) -> bool:
    """Whether a comparison is one of dates or years, so that "later" is said and not "greater"."""
    objects = [fact[2] for fact in question.facts]
    if all(graph.keys[node].rpartition("^^")[2] in ("gYear", "date", "dateTime", "gYearMonth") for node in objects):
        return True
    values = [value_of(graph.label(node, "en")) for node in objects]
    return all(value is not None and value.dimension == "date" for value in values)


# ---------------------------------------------------------------- phrases out of a label


def fill(template: str, **names: str) -> str:
    """The template with {s} and {o} put in; what is put in is never read as a template."""
    filled = re.sub(r"\{([so])\}", lambda m: names.get(m[1], m[0]), template)
    return re.sub(r"是约(?=\d)", "约为", filled)  # 全长是约200公里


def capital(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


def complete(known: Phrases, language: str) -> Phrases:
    """What is known of a relation's phrases, the rest made out of its label, or out of its statement alone."""
    if known.statement:
        blank_tail, blank_head = fill(known.statement, o="…"), fill(known.statement, s="…")
        if language == "zh":
            made = Phrases(
                tail=f"“{blank_tail}”，其中应填什么？",
                head=f"“{blank_head}”，其中应填什么？",
                ref=f"“{blank_tail}”中应填的对象",
            )
        else:
            made = Phrases(
                tail=f"What completes the statement “{blank_tail}”?",
                head=f"What completes the statement “{blank_head}”?",
                ref=f"what completes “{blank_tail}”",
            )
    else:
        made = chinese.phrases_of(known.label) if language == "zh" else english.phrases_of(known.label)
    given = {name: getattr(known, name) or getattr(made, name) for name in ("statement", "tail", "head", "ref")}
    return replace(known, **given)
