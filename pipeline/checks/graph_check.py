"""Does the graph vouch for this question and its answer? Symbolic, free, and asked before any judge.

The question must name what it asks about, so that nothing else can be meant, and must not give its answer away.
The answer must name every entity and value the graph gives (by label or alias, in any unit), none that the facts
exclude, the right count and the right truth value, and must not turn a fact round. What fails comes back with the
triple it broke. A true sentence may be turned away where symbols cannot see that it is true; a lie in one of the
ways tests/fake_kg.py knows must never pass. docs/self-kg.md says what is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from kg.graph import Fact, Graph
from kg.names import tokens
from kg.questions import Question
from kg.values import same_number, value_of, values_in
from pipeline.checks.graph_reading import NEGATION, Reading, cue_places, cues, stem, swapped, unit_of, wanted_value
from pipeline.phrasing.speaker import Speaker
from pipeline.text import asks

_ASKS_TRUTH = re.compile(
    r"(?:true|right|correct) or (?:false|wrong|incorrect|not)|yes or no|是否|对错|真假|正误|对不对|是不是"
    r"|对还是错|真还是假",
    re.IGNORECASE,
)
_POLARITY = re.compile(
    r"(?P<no>\b(?:no|false|incorrect|wrong|untrue|not (?:true|correct|right|so|the case)|isn['’]t|does not|is not|"
    r"did not|was not|doesn['’]t|didn['’]t|wasn['’]t|are not|were not)\b|不正确|不属实|不对|不是|并非|错误"
    r"|错(?!过)|否|假|不符)"
    r"|(?P<yes>\b(?:yes|true|correct|right|indeed|certainly|that['’]s right)\b"
    r"|没错|正确|属实|是的|对|真|无误|是(?=[，。,.]))",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"\b(?:not|no|unknown|nothing|silent|lacks?|cannot|without|unanswered|missing)\b|n['’]t\b|没有|未|无|不|缺|查不到",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"\b(?:greater|larger|bigger|longer|higher|more|later|heavier|after|greatest|largest|biggest|longest|latest|second)\b"
    r"|[更较最还比].{0,1}[大长高多晚重后快]|大于|多于|高于|晚于|长于|快于|[大长高多晚重快](?=一些|得多)",
    re.IGNORECASE,
)
_LESS = re.compile(
    r"\b(?:smaller|shorter|lower|less|fewer|earlier|lighter|before|smallest|shortest|lowest|least|earliest|first)\b"
    r"|[更较最还比].{0,1}[小短低少早轻先前慢]|小于|少于|低于|早于|短于|慢于|[小短低少早轻慢](?=一些|得多)",
    re.IGNORECASE,
)


_ONLY = re.compile(r"\b(?:only|sole|solely|exclusively|alone|no other)\b|唯一|仅仅|仅有|只有", re.IGNORECASE)
# What a question may hold beside the words of the plain one: they ask, and say nothing.
_NEUTRAL = frozenset(
    stem(word)
    for word in """a an the of in on at to by for from with and or is are was were be been do does did has have had can
    could would you me i it that this what which who whom whose where when how many much tell name list give say know
    please right correct true false statement claim there if s answer question check whether all one
    请 问 是 的 吗 呢 什 么 哪 谁 个 些 有 多 少 几 告 诉 我 说 一 下 对 错 正 确 否 这 句 话 了 在 和 与 为
    里 时 候""".split()
)


@dataclass(frozen=True, slots=True)
class Broken:
    """What is wrong, and the triple it broke ("" where it broke none)."""

    reason: str
    triple: str = ""


@dataclass(eq=False)
class Asked:
    """A question of the graph, as a record carries it to the filter. `scenario` lets the question tell a case.

    `plain` is the template's wording where a small model put that alone into other words: it may drop words of it and
    turn them round, and bring none of its own.
    """

    question: Question
    speaker: Speaker
    scenario: bool = False
    plain: str = ""

    @property
    def graph(self) -> Graph:
        return self.speaker.graph

    @cached_property
    def wording(self) -> str:
        """All the words of the relations asked about: what they name or negate is no claim."""
        parts = (self.speaker.phrases(relation) for relation in self.question.relations)
        text = " \n ".join(" \n ".join((p.label, p.statement, p.tail, p.head, p.ref)) for p in parts)
        return re.sub(r"\{[so]\}", " ", text)

    @cached_property
    def in_wording(self) -> frozenset[int]:
        """The nodes that the relations' own words name: "takes … Earth years to go around the Sun"."""
        return Reading(self.wording, self.graph).named

    @cached_property
    def allowed(self) -> frozenset[int]:
        """The nodes that may be named: those of the facts, their types, and what the wording itself names."""
        question = self.question
        nodes = {*question.asked, *question.answers, *(n for f in question.facts for n in (f[0], f[2]))}
        types = {type_ for node in nodes for type_ in self.graph.types.get(node, ())}
        return frozenset(nodes | types) | self.in_wording

    def unit(self, node: int) -> str:
        """The unit of a node that is the object of one of the facts."""
        facts = self.question.facts + ((self.question.claimed,) if self.question.claimed else ())
        return next((unit_of(self.speaker, fact[1]) for fact in facts if fact[2] == node), "")

    def show(self, fact: Fact) -> str:
        name = self.speaker.name
        return f"{name(fact[0])} — {self.speaker.phrases(fact[1]).label} — {name(fact[2])}"

    def fact_of(self, node: int) -> Fact | None:
        return next((fact for fact in self.question.facts if node in (fact[0], fact[2])), None)

    def broken(self, reason: str, fact: Fact | None = None) -> Broken:
        fact = fact or self.question.claimed or (self.question.facts[0] if self.question.facts else None)
        return Broken(reason, self.show(fact) if fact else "")


def check(asked: Asked, instruction: str, output: str) -> Broken | None:
    """What is wrong with a question and its answer; None where the graph vouches for both."""
    question, answer = Reading(instruction, asked.graph), Reading(output, asked.graph)
    kind = asked.question.kind
    return (
        _check_question(asked, question)
        or _strangers(asked, answer, "the answer")
        or _ANSWERS[kind](asked, question, answer)
    )


# ---------------------------------------------------------------- the question


def _check_question(asked: Asked, reading: Reading) -> Broken | None:
    for node in asked.question.asked:
        if not reading.says(node, asked.unit(node)):
            return asked.broken(f"the question does not name {asked.speaker.name(node)!r}", asked.fact_of(node))
        if _ambiguous(asked, reading, node):
            return asked.broken(f"the question's {asked.speaker.name(node)!r} may mean several entities")
    return (
        _asks_nothing(asked, reading)
        or _gives_away(asked, reading)
        or (None if asked.scenario else _strangers(asked, reading, "the question"))
        or _asks_otherwise(asked, reading)
        or (_own_words(asked, reading) if asked.plain else None)
    )


def _asks_nothing(asked: Asked, reading: Reading) -> Broken | None:
    return None if asks(reading.text) else asked.broken("the question asks nothing")


def _own_words(asked: Asked, reading: Reading) -> Broken | None:
    """A word that the plain question lacks, or none left of the relation's own."""
    have, said = {stem(word) for word, _, _ in tokens(asked.plain)} | _NEUTRAL, tokens(reading.text)
    strange = next((word for word, _, _ in said if stem(word) not in have), None)
    if strange is not None:
        return asked.broken(f"the question says {strange!r}, which the plain one does not")
    for relation in asked.question.relations if asked.question.kind != "summary" else ():
        own = cues(asked.speaker, relation) & have - _NEUTRAL
        if own and own.isdisjoint(stem(word) for word, _, _ in said):
            return asked.broken("the question leaves out what is asked")
    return None


def _ambiguous(asked: Asked, reading: Reading, node: int) -> bool:
    """Whether every place that names the node may mean another as well, and no type beside it tells them apart."""
    meant = [mention.nodes for mention in reading.mentions if node in mention.nodes]
    if not meant or any(len(nodes) == 1 for nodes in meant):
        return False
    own = set(asked.graph.types.get(node, ()))
    others = {other for other in meant[0] if other != node}
    telling = {t for t in own if not any(t in asked.graph.types.get(other, ()) for other in others)}
    return not any(reading.says(type_) for type_ in telling)


def _gives_away(asked: Asked, reading: Reading) -> Broken | None:
    question = asked.question
    hidden = [node for node in question.answers if node not in question.asked]
    if question.kind == "path":
        hidden += [fact[2] for fact in question.facts[:-1]]
    for node in hidden:
        if node not in asked.in_wording and reading.says(node, asked.unit(node)):
            return asked.broken(f"the question gives {asked.speaker.name(node)!r} away", asked.fact_of(node))
    if question.kind == "count" and any(value.number == question.number for value in reading.values):
        return asked.broken(f"the question gives the number {question.number} away")
    return None


def _asks_otherwise(asked: Asked, reading: Reading) -> Broken | None:
    """A question that is negated, turned round, or about another relation of the entity."""
    question = asked.question
    text = _ASKS_TRUTH.sub(" ", reading.masked)
    allowed = {match.group().lower() for match in NEGATION.finditer(asked.wording)}
    if question.kind != "absent" and any(m.group().lower() not in allowed for m in NEGATION.finditer(text)):
        return asked.broken("the question is negated")
    facts = (question.claimed,) if question.claimed else question.facts
    if question.kind not in ("path", "compare", "summary", "both"):
        for fact in facts:
            if swapped(reading, fact, asked.speaker):
                return asked.broken("the question is asked the wrong way round", fact)
    if question.kind == "compare" and bool(_MORE.search(text)) == bool(_LESS.search(text)):
        return asked.broken("the question does not say whether more or less is asked for")
    if question.kind == "compare" and bool(_MORE.search(text)) != question.more:
        return asked.broken("the question asks for the opposite")
    return _other_relation(asked, reading)


def _other_relation(asked: Asked, reading: Reading) -> Broken | None:
    """Words of another relation of the entity asked about, and none of the one that is meant."""
    question = asked.question
    if question.kind in ("summary", "both", "path", "compare") or asked.scenario:
        return None
    own = cues(asked.speaker, question.relations[0])
    if not own or cue_places(reading, own):
        return None
    entity = question.asked[0]
    related = asked.graph.relations_into(entity, 32) if question.inverse else asked.graph.relations_of(entity, 32)
    for relation in related:
        if asked.speaker.was_awkward(relation):
            continue  # what is known of it depends on what was asked before
        theirs = cues(asked.speaker, relation) - own
        if theirs and len(cue_places(reading, theirs)) >= max(1, len(theirs) / 2):
            return asked.broken(f"the question asks about {asked.speaker.phrases(relation).label!r} instead")
    return None


# ---------------------------------------------------------------- what neither may say


def _strangers(asked: Asked, reading: Reading, where: str) -> Broken | None:
    """An entity that could stand in the place of one in the facts, and does not; a number the facts do not give."""
    for mention in reading.mentions:
        if mention.start == 0 and asked.question.claimed and _POLARITY.fullmatch(reading.text[: mention.end]):
            continue
        meant = reading.meant(mention)
        if asked.allowed.isdisjoint(meant) and any(_rival(asked, node) for node in meant):
            name = reading.text[mention.start : mention.end]
            return asked.broken(f"{where} names {name!r}, which the facts do not give")
    if where == "the answer" and _ONLY.search(reading.masked) and not _ONLY.search(asked.wording):
        return asked.broken(f"{where} says that there is nothing else, which no graph can tell")
    numbers = [wanted_value(asked.graph, node, asked.unit(node)) for node in asked.allowed]
    known = [value for value in (*numbers, *values_in(asked.wording)) if value is not None]
    counted = len(asked.question.answers) if asked.question.kind in ("list", "count", "both") else None
    for value in reading.values:
        if value.written != counted and not any(same_number(value, wanted) for wanted in known):
            return asked.broken(f"{where} says {reading.text[value.start : value.end]!r}, which the facts do not give")
    return None


def _rival(asked: Asked, node: int) -> bool:
    """Whether a node is of the kind the facts speak of: in a relation's range or domain, or of an asked type."""
    graph, question = asked.graph, asked.question
    if any(graph.count_heads(node, r) or graph.count_tails(node, r) for r in question.relations):
        return True
    types = {type_ for known in (*question.asked, *question.answers) for type_ in graph.types.get(known, ())}
    return not types.isdisjoint(graph.types.get(node, ()))


# ---------------------------------------------------------------- the answer, kind by kind


def _named(asked: Asked, question: Reading, answer: Reading) -> Broken | None:
    """Every answer named, nothing denied, no fact turned round."""
    for node in asked.question.answers:
        if not answer.says(node, asked.unit(node)):
            return asked.broken(f"the answer does not name {asked.speaker.name(node)!r}", asked.fact_of(node))
    if answer.negations(asked.wording):
        return asked.broken("the answer denies something")
    return _turned_round(asked, answer)


def _turned_round(asked: Asked, answer: Reading) -> Broken | None:
    for sentence in answer.sentences():
        for fact in asked.question.facts:
            turned = swapped(sentence, fact, asked.speaker)
            if turned and not _also_true(asked, sentence, fact):
                return asked.broken("the answer turns a fact round", fact)
    return None


def _also_true(asked: Asked, sentence: Reading, fact: Fact) -> bool:
    """Whether what looks turned round is another of the facts: Io orbits Jupiter, Jupiter orbits the Sun."""
    reading = sentence.named
    return any(
        other != fact and other[1] == fact[1] and {other[0], other[2]} & {fact[0], fact[2]} and other[0] in reading
        for other in asked.question.facts
    )


def _count(asked: Asked, question: Reading, answer: Reading) -> Broken | None:
    numbers = {value.written for value in values_in(answer.masked, words=True)} - {1.0}
    if numbers != {float(asked.question.number or 0)}:
        return asked.broken(f"the graph counts {asked.question.number}, the answer says {_listed(numbers)}")
    members = asked.question.answers
    named = [node for node in members if answer.says(node)]
    if named and len(named) < len(members):
        missing = next(node for node in members if node not in named)
        return asked.broken(f"the answer leaves out {asked.speaker.name(missing)!r}", asked.fact_of(missing))
    return asked.broken("the answer denies something") if answer.negations(asked.wording) else None


def _listed(numbers: set[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers)) or "none"


def _compare(asked: Asked, question: Reading, answer: Reading) -> Broken | None:
    """The winner named, and where the loser is named too, in an order that fits the comparison."""
    winner = asked.question.answers[0]
    loser = next(node for node in asked.question.asked if node != winner)
    won, lost = answer.places(winner), answer.places(loser)
    if not won:
        return asked.broken(f"the answer does not name {asked.speaker.name(winner)!r}", asked.fact_of(winner))
    if answer.negations(asked.wording):
        return asked.broken("the answer denies something")
    text = answer.masked
    more, less = bool(_MORE.search(text)), bool(_LESS.search(text))
    opposite = less if asked.question.more else more
    turned = opposite and bool(re.search(r"\bthan\b|比", text))  # "Io is smaller than Titan"
    if (opposite and not (turned and lost)) or (more and less):
        return asked.broken("the answer says the opposite", asked.fact_of(winner))
    if lost and (lost[0] < won[0]) != turned:
        return asked.broken("the answer compares the wrong way round", asked.fact_of(loser))
    return _values_beside_names(asked, answer)


def _values_beside_names(asked: Asked, answer: Reading) -> Broken | None:
    """Each number stands after the entity it belongs to, or before it where none comes earlier."""
    places = sorted((place, node) for node in asked.question.asked for place in answer.places(node))
    for fact in asked.question.facts:
        for at in answer.places(fact[2], asked.unit(fact[2])):
            earlier = [node for place, node in places if place < at]
            nearest = earlier[-1] if earlier else places[0][1]
            if nearest != fact[0]:
                return asked.broken("the answer gives a value to the wrong entity", fact)
    return None


def _claim(asked: Asked, question: Reading, answer: Reading) -> Broken | None:
    """The truth value said, once and for all, and nothing after it that says otherwise."""
    asked_question = asked.question
    claimed = asked_question.claimed
    assert claimed is not None
    found = _POLARITY.match(answer.text) or _POLARITY.search(answer.masked)  # "Yes" may be a band in this graph
    if found is None:
        return asked.broken("the answer says neither yes nor no")
    says = found["yes"] is not None
    if says != asked_question.truth:
        return asked.broken(f"the answer says {'yes' if says else 'no'}, the graph the opposite")
    denials = [at for at in answer.negations(asked.wording) if at >= found.end()]
    if found["no"] and len(found.group()) > 3 and found.group().lower().endswith(("not", "n't", "n’t", "不是", "并非")):
        denials.insert(0, found.start())  # "it does not orbit": denies what follows
    if asked_question.truth:
        later = _POLARITY.search(answer.masked, found.end())
        if denials or (later and later["no"]):
            return asked.broken("the answer says yes and then denies it")
        return _turned_round(asked, answer)
    return _denied(asked, answer, denials) or _turned_round(asked, answer)


def _denied(asked: Asked, answer: Reading, denials: list[int]) -> Broken | None:
    """After a no: the false tail may come only behind a denial, and no denial may be followed by a true one."""
    claimed = asked.question.claimed
    assert claimed is not None
    places = [(at, False) for at in answer.places(claimed[2], asked.unit(claimed[2]))]
    for fact in asked.question.facts:
        places += [(at, True) for at in answer.places(fact[2], asked.unit(fact[2]))]
    places.sort()
    for at, is_true in places:
        before = [denial for denial in denials if denial < at]
        between = [place for place, _ in places if before and before[-1] < place < at]
        denied = bool(before) and not between
        if denied == is_true:
            reason = "the answer denies a fact" if is_true else "the answer says no and then affirms it"
            return asked.broken(reason)
    return None


def _summary(asked: Asked, question: Reading, answer: Reading) -> Broken | None:
    """Every fact told, each object in a sentence that speaks of its own relation and nearer to it than to others."""
    wrong = _named(asked, question, answer)
    if wrong is not None:
        return wrong
    own = {fact: cues(asked.speaker, fact[1]) for fact in asked.question.facts}
    for fact in asked.question.facts:
        theirs = set().union(*(words for other, words in own.items() if other != fact)) - own[fact]
        told = False
        for sentence in answer.sentences():
            for at in sentence.places(fact[2], asked.unit(fact[2])):
                mine, others = cue_places(sentence, own[fact]), cue_places(sentence, theirs)
                if mine and (not others or _distance(mine, at) <= _distance(others, at)):
                    told = True
                elif others and fact[2] not in asked.in_wording:
                    return asked.broken("the answer gives a value to the wrong relation", fact)
        if not told:
            return asked.broken("the answer does not say how the two belong together", fact)
    return None


def _distance(places: list[int], at: int) -> int:
    """How far the nearest of the places is; what comes before counts as nearer than what comes after."""
    return min(at - place if place < at else 2 * (place - at) for place in places)


def _absent(asked: Asked, question: Reading, answer: Reading) -> Broken | None:
    subject = asked.question.asked[0]
    if not answer.holds(_UNKNOWN):
        return asked.broken("the graph does not hold this, and the answer does not say so")
    extra = [node for node in answer.named - asked.allowed if _rival(asked, node)]
    if extra or any(value_of(answer.text[v.start : v.end]) for v in answer.values):
        return asked.broken(
            f"the answer tells something of {asked.speaker.name(subject)!r} that the graph does not hold"
        )
    return None


_ANSWERS: dict[str, Callable[[Asked, Reading, Reading], Broken | None]] = {
    "tail": _named, "head": _named, "list": _named, "both": _named, "path": _named, "count": _count,
    "compare": _compare, "true": _claim, "false": _claim, "summary": _summary, "absent": _absent,
}  # fmt: skip
