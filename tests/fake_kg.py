"""A model's answers to Self-KG, written with the graph in hand: true ones in free words, and lies of every kind.

The wording below is a person's, not the templates': other verbs, active and passive voice, aliases, other units and
spellings of numbers, English and Chinese. A lie takes such a true pair, or the graph's own words, and makes one thing
wrong. `prepare` writes them into the file that `tests.fake_server --answers` reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random

from kg.graph import Fact, Graph
from kg.questions import Question
from kg.values import value_of
from pipeline.phrasing.speaker import Draft, Speaker, capital, fill

Said = dict[str, list[list[str]]]  # relation -> [ways to tell it, to ask for the object, to ask for the subject]

EN: Said = {
    "orbits": [
        [
            "{s} goes around {o}",
            "{o} is circled by {s}",
            "{s} is in orbit around {o}",
            "{s} moves around {o}",
            "{o} is orbited by {s}",
            "{s} revolves about {o}",
            "around {o} circles {s}",
        ],
        ["Around which body does {s} move?", "Which body does {s} circle?", "{s} is in orbit around what, please?"],
        ["Which body circles {o}?", "Tell me what revolves around {o}.", "What can be seen going around {o}?"],
    ],
    "discoveredBy": [
        [
            "{o} discovered {s}",
            "{s} was found by {o}",
            "the discovery of {s} is due to {o}",
            "{s} was first seen by {o}",
            "{s}'s discoverer was {o}",
            "credit for finding {s} goes to {o}",
            "it was {o} who discovered {s}",
        ],
        ["Who was the first to spot {s}?", "Whose discovery is {s}?", "To whom do we owe the discovery of {s}?"],
        ["Which body was found by {o}?", "{o} is known for discovering which body?"],
    ],
    "discoveryYear": [
        ["{s} was found in {o}", "the discovery of {s} dates from {o}", "people have known {s} since {o}"],
        [
            "When was {s} found?",
            "Since which year has {s} been known?",
            "From what year does the discovery of {s} date?",
        ],
        ["What was found in {o}?"],
    ],
    "radius": [
        ["{s} measures {o} from its centre to its surface, on average", "on average the radius of {s} is {o}"],
        ["How far is it from the centre of {s} to its surface, on average?", "What is {s}'s radius on average?"],
        ["What has a radius of {o}?"],
    ],
    "period": [
        [
            "one trip of {s} around the Sun lasts {o} Earth years",
            "{s} needs {o} Earth years for one trip around the Sun",
        ],
        ["How long, in Earth years, does one trip of {s} around the Sun last?"],
        ["What needs {o} Earth years for one trip around the Sun?"],
    ],
    "foundIn": [
        ["{s} belongs to {o}", "{s} is one of the bodies in {o}", "you will find {s} in {o}", "{s} lies in {o}"],
        ["To which region does {s} belong?", "Where in the solar system would I find {s}?"],
        ["Which body belongs to {o}?"],
    ],
    "namedAfter": [
        [
            "the name of {s} comes from {o}",
            "{s} takes its name from {o}",
            "{o} gave {s} its name",
            "{s} is called after {o}",
        ],
        ["Where does the name of {s} come from?", "Whose name does {s} bear?"],
        ["What takes its name from {o}?", "Which body is called after {o}?"],
    ],
    "birthplace": [
        ["{o} is the birthplace of {s}", "{s} came from {o}", "{s} was a native of {o}"],
        ["In which town did {s} come into the world?", "What is the birthplace of {s}?"],
        ["Who came from {o}?", "Who was a native of {o}?"],
    ],
    "bornIn": [["{s} came into the world in {o}", "{o} is the year {s} was born"], ["When was {s} born?"], []],
    "diedIn": [
        ["{s} passed away in {o}", "{s} lived until {o}"],
        ["When did {s} pass away?", "Until what year did {s} live?"],
        [],
    ],
    "launched": [
        ["{s} left the Earth in {o}", "{s} set out in {o}", "the launch of {s} took place in {o}"],
        ["When did {s} set out?", "When did the launch of {s} take place?"],
        [],
    ],
    "operator": [
        ["{s} belongs to {o}", "{s} is run by {o}", "{o} runs {s}", "the agency behind {s} is {o}"],
        ["Which agency runs {s}?", "Who is behind {s}?"],
        ["Which spacecraft is run by {o}?"],
    ],
    "target": [
        ["{s} flew to {o}", "{o} was visited by {s}", "{s} explored {o}", "{s} went to {o}"],
        ["Which body did {s} explore?", "Where did {s} fly?"],
        ["Which spacecraft explored {o}?", "By which spacecraft was {o} visited?"],
    ],
    "inCountry": [
        ["{s} is a place in {o}", "{s} belongs to {o}"],
        ["Which country does {s} belong to?"],
        ["Which place belongs to {o}?"],
    ],
}

ZH: Said = {
    "orbits": [
        ["{s}绕着{o}转", "{o}被{s}环绕", "{s}围绕{o}公转", "绕{o}运行的是{s}", "{s}在{o}周围运行"],
        ["{s}绕着哪个天体转？", "{s}围绕谁公转？", "请问{s}是绕什么运行的？"],
        ["哪个天体绕着{o}转？", "围绕{o}公转的是哪个天体？"],
    ],
    "discoveredBy": [
        ["{o}发现了{s}", "{s}的发现者是{o}", "发现{s}的是{o}", "{s}是{o}发现的", "{s}被{o}首次观测到"],
        ["谁最早观测到了{s}？", "{s}的发现者是谁？", "发现{s}的人是谁？"],
        ["{o}观测到的是哪个天体？", "哪个天体的发现者是{o}？"],
    ],
    "discoveryYear": [
        ["{s}的发现是在{o}年", "人们在{o}年发现了{s}", "{o}年，{s}首次被观测到"],
        ["人们是哪一年发现{s}的？", "{s}的发现年份是哪一年？"],
        [],
    ],
    "radius": [
        ["{s}的半径平均为{o}", "从{s}的中心到表面平均有{o}"],
        ["从{s}的中心到表面平均有多远？", "{s}的平均半径有多大？"],
        [],
    ],
    "foundIn": [
        ["{s}属于{o}", "{s}是{o}里的天体", "{s}处在{o}之中"],
        ["{s}属于太阳系的哪个区域？", "在太阳系的什么地方能找到{s}？"],
        [],
    ],
    "namedAfter": [
        ["{s}的名字来自{o}", "{s}得名于{o}", "{s}是用{o}的名字命名的"],
        ["{s}得名于什么？", "{s}的名字是怎么来的？"],
        ["哪个天体得名于{o}？"],
    ],
    "birthplace": [["{o}是{s}的出生地", "{s}是{o}人"], ["{s}是哪里人？", "{s}的出生地在哪里？"], ["谁的出生地是{o}？"]],
    "bornIn": [["{s}出生在{o}年", "{s}的生年是{o}年"], ["{s}是哪一年出生的？"], []],
    "diedIn": [["{s}逝世于{o}年", "{s}的卒年是{o}年"], ["{s}是哪一年逝世的？"], []],
    "launched": [["{s}在{o}年升空", "{o}年，{s}发射升空"], ["{s}是在哪一年升空的？"], []],
    "operator": [["{s}由{o}负责", "负责{s}的是{o}", "{s}属于{o}"], ["{s}由哪个机构负责？"], ["{o}负责哪个探测器？"]],
    "target": [
        ["{s}飞往{o}", "{s}考察了{o}", "{o}被{s}考察过"],
        ["{s}考察了哪个天体？", "{s}飞往哪里？"],
        ["哪个探测器考察过{o}？"],
    ],
    "inCountry": [["{s}是{o}的一个地方", "{s}属于{o}"], ["{s}属于哪个国家？"], ["哪个地方属于{o}？"]],
}

TABLES = {"en": EN, "zh": ZH}


class Teller:
    """Writes pairs about a graph in one language."""

    def __init__(self, speaker: Speaker, seed: int) -> None:
        self.speaker, self.graph, self.random = speaker, speaker.graph, Random(seed)
        self.zh = speaker.language == "zh"
        self.facts: dict[int, list[Fact]] = {}
        for fact in self.graph.facts():
            self.facts.setdefault(fact[1], []).append(fact)

    # ---------------------------------------------------------------- parts

    def name(self, node: int, relation: int | None = None) -> str:
        """Any of the node's names in the language; a number in any spelling, with its unit."""
        label = self.graph.label(node, self.speaker.language)
        value = value_of(label)
        if value is not None:
            return self.number(label, relation)
        names = self.graph.labels.get(node, {}).get(self.speaker.language, [label])
        clear = [name for name in names if len(self.graph.nodes_named(name)) == 1]
        return self.random.choice(clear or [label])

    def number(self, label: str, relation: int | None) -> str:
        key = self.key(relation) if relation is not None else ""
        if key != "radius":
            return label
        figure = float(label)
        long = f"{figure:,.1f}".removesuffix(".0")
        if self.zh:
            return self.random.choice([f"{long}公里", f"{label}千米", f"{figure / 10000:.6g}万公里"])
        return self.random.choice([f"{long} km", f"{label} kilometres", f"{figure * 1000:,.0f} metres"])

    def key(self, relation: int) -> str:
        return self.graph.relation_keys[relation].rsplit(":", 1)[-1]

    def ways(self, relation: int, which: int) -> list[str]:
        phrases = self.speaker.phrases(relation)
        own = [phrases.statement, phrases.tail, phrases.head][which]
        found = TABLES[self.speaker.language].get(self.key(relation), [[], [], []])[which]
        return found if found and (self.key(relation) != "radius" or which) else found or [own]

    def tell(self, fact: Fact) -> str:
        """A fact in free words, without full stop."""
        way = self.random.choice(self.ways(fact[1], 0))
        return fill(way, s=self.name(fact[0]), o=self.name(fact[2], fact[1]))

    def turned(self, fact: Fact) -> str:
        """A fact turned round, in free words or the graph's own."""
        way = self.random.choice([*self.ways(fact[1], 0), self.speaker.phrases(fact[1]).statement])
        return fill(way, s=self.name(fact[2]), o=self.name(fact[0]))

    def sentence(self, *clauses: str) -> str:
        return "".join(clause + "。" for clause in clauses) if self.zh else " ".join(capital(c) + "." for c in clauses)

    def both(self, en: str, zh: str) -> str:
        return zh if self.zh else en

    def ask(self, question: Question) -> str:
        relation, node = question.relations[0], question.asked[0]
        if question.inverse:
            return capital(fill(self.random.choice(self.ways(relation, 2)), o=self.name(node)))
        return capital(fill(self.random.choice(self.ways(relation, 1)), s=self.name(node)))

    def listed(self, nodes: list[int]) -> str:
        names = [self.name(node) for node in nodes]
        self.random.shuffle(names)
        joined = self.both(", ", "、").join(names[:-1])
        ands = self.random.choice(self.both(" and |, and |, as well as ", "和|以及|与").split("|"))
        return joined + ands + names[-1] if len(names) > 1 else names[0]

    def claim_question(self, claimed: Fact) -> str:
        told = self.tell(claimed)
        ways = self.both(
            "Would you say that {}?|I have read that {}. Is that so?|Fact check: {}.",
            "{}，这种说法对吗？|有人说{}，是这样吗？|请判断：{}。",
        )
        return capital(self.random.choice(ways.split("|")).format(told))

    # ---------------------------------------------------------------- the truth, in free words

    def true_pair(self, question: Question) -> Draft:
        kind = question.kind
        if kind in ("tail", "head"):
            fact = question.facts[0]
            bare = self.sentence(self.name(question.answers[0], None if question.inverse else fact[1]))
            lead = self.both("As far as the record goes, ", "据记载，")
            told = self.tell(fact)
            answers = [self.sentence(told), self.sentence(told), self.sentence(lead + told), bare]
            return Draft(self.ask(question), self.random.choice(answers))
        return getattr(self, f"_{kind}")(question)  # type: ignore[no-any-return]

    def _list(self, question: Question) -> Draft:
        names = self.listed(list(question.answers))
        tails = [
            self.both(" I need the complete list.", "请给出完整名单。"),
            self.both(" Please name every one.", "请一一列举。"),
        ]
        answers = self.both("{}.|The complete list is: {}.|Those are {}.", "{}。|完整名单是：{}。|它们是{}。").split(
            "|"
        )
        return Draft(self.ask(question) + self.random.choice(tails), self.random.choice(answers).format(names))

    def _count(self, question: Question) -> Draft:
        words = "zero one two three four five six seven eight nine ten eleven twelve".split()
        digits = "零一两三四五六七八九十"
        number = question.number or 0
        spelled = [str(number), words[number] if number < len(words) else str(number)]
        if self.zh:
            spelled = [str(number), digits[number] if number < len(digits) else str(number)]
        said = self.random.choice(spelled)
        asks = self.both(" How many such answers does the knowledge graph hold?", "这样的答案在知识图谱里有几个？")
        names = self.listed(list(question.answers))
        answers = self.both(
            f"There are {said} of them.|The knowledge graph holds {said}: that is, {names}.",
            f"一共有{said}个。|知识图谱里有{said}个，即{names}。",
        )
        return Draft(self.ask(question) + asks, self.random.choice(answers.split("|")))

    def _both(self, question: Question) -> Draft:
        drafted = self.speaker.draft(question)
        names = self.listed(list(question.answers))
        return Draft(drafted.instruction, self.both(f"Both hold for {names}.", f"同时满足的有{names}。"))

    def _path(self, question: Question) -> Draft:
        drafted = self.speaker.draft(question)
        bare = self.sentence(self.name(question.answers[0], question.facts[-1][1]))
        told = self.sentence(*map(self.tell, question.facts))
        return Draft(drafted.instruction, self.random.choice([bare, told]))

    def _compare(self, question: Question) -> Draft:
        drafted = self.speaker.draft(question)
        winner = self.name(question.answers[0])
        loser = self.name(next(node for node in question.asked if node != question.answers[0]))
        pairs = self.both(
            f"{winner}.|It is {winner}.|Of the two, {winner}.|{winner} comes out ahead of {loser}.",
            f"{winner}。|是{winner}。|两者之中是{winner}。|答案是{winner}，其次才轮到{loser}。",
        ).split("|")
        return Draft(drafted.instruction, capital(self.random.choice(pairs)))

    def _true(self, question: Question) -> Draft:
        fact = question.facts[0]
        told = self.tell(fact)
        ways = self.both(
            "Yes.|Yes, {}.|That is correct: {}.|True, {}.|Indeed, {}.", "是的。|对，{}。|没错，{}。|正确，{}。"
        )
        return Draft(self.claim_question(fact), self.random.choice(ways.split("|")).format(told))

    def _false(self, question: Question) -> Draft:
        assert question.claimed is not None
        told = self.both(" ", "").join(self.sentence(self.tell(fact)) for fact in question.facts)
        wrong = self.name(question.claimed[2], question.claimed[1])
        right = self.name(question.facts[0][2], question.facts[0][1])
        ways = [
            self.both("No. ", "不对。") + told,
            self.both("That is wrong. ", "这是错误的。") + told,
            self.both("No.", "不是。"),
        ]
        if len(question.facts) == 1:
            ways.append(self.both(f"No, it is not {wrong} but {right}.", f"不对，不是{wrong}，而是{right}。"))
            ways.append(self.both(f"False: it is {right} rather than {wrong}.", f"错误，应为{right}，而非{wrong}。"))
        return Draft(self.claim_question(question.claimed), self.random.choice(ways))

    def _summary(self, question: Question) -> Draft:
        drafted = self.speaker.draft(question)
        facts = list(question.facts)
        self.random.shuffle(facts)
        return Draft(drafted.instruction, self.both(" ", "").join(map(self.speaker.sentence, facts)))

    def _absent(self, question: Question) -> Draft:
        ways = self.both(
            "The knowledge graph holds no information on this.|This is not recorded in the knowledge graph."
            "|I cannot tell: the graph does not say.",
            "知识图谱中没有相关记录。|这一点图谱未作说明。|无法回答，图谱里查不到。",
        )
        scope = self.both(" Use nothing but the knowledge graph.", "请仅依据知识图谱作答。")
        return Draft(self.ask(question) + scope, self.random.choice(ways.split("|")))

    # ---------------------------------------------------------------- lies

    def rival(self, fact: Fact, *, head: bool = False) -> int | None:
        """A node of the same type that the graph does not give in this place."""
        at = 0 if head else 2
        graph, types = self.graph, set(self.graph.types.get(fact[at], ()))
        others = []
        for other in self.facts[fact[1]]:
            node = other[at]
            if node in fact or set(graph.types.get(node, ())) != types:
                continue
            changed = (node, fact[1], fact[2]) if head else (fact[0], fact[1], node)
            if not graph.has(*changed) and graph.label(node, "en") != graph.label(fact[at], "en"):
                others.append(node)
        return self.random.choice(sorted(set(others))) if others else None

    def lies(self, question: Question) -> Iterator[tuple[str, Draft]]:
        """(what kind of lie, the pair) in every way this question can be lied about."""
        true = self.true_pair(question)
        yield from _LIES[question.kind](self, question, true)
        if question.kind in ("tail", "head", "list", "path", "both"):
            given = self.listed(list(question.answers))
            hint = self.both(f" (Hint: {given}.)", f"（提示：{given}。）")
            yield "gives the answer away", Draft(true.instruction + hint, true.output)
        if question.kind in ("tail", "list", "head") and not self.graph.is_literal(question.asked[0]):
            fact = question.facts[0]
            other = self.rival(fact, head=not question.inverse)
            if other is not None:
                swapped = Question(
                    question.kind, (other,), question.answers, question.facts, question.relations, question.inverse
                )
                yield "asks of another entity", Draft(self.ask(swapped), true.output)

    def changed(self, fact: Fact, node: int, *, head: bool = False) -> Fact:
        return (node, fact[1], fact[2]) if head else (fact[0], fact[1], node)


def _lie_single(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    fact = question.facts[-1]
    other = teller.rival(fact, head=question.inverse)
    if other is not None:
        wrong = teller.changed(fact, other, head=question.inverse)
        yield "wrong entity, told", Draft(true.instruction, teller.sentence(teller.tell(wrong)))
        bare = teller.name(other, None if question.inverse else fact[1])
        yield "wrong entity, bare", Draft(true.instruction, teller.sentence(bare))
        right = teller.name(question.answers[0], None if question.inverse else fact[1])
        either = teller.both(f"{right} or {bare}", f"{right}或{bare}")
        yield "one entity too many", Draft(true.instruction, teller.sentence(either))
    if not teller.graph.is_literal(fact[2]):
        yield "turned round", Draft(true.instruction, teller.sentence(teller.turned(fact)))
    denied = teller.both(f"It is not {teller.name(question.answers[0])}.", f"不是{teller.name(question.answers[0])}。")
    yield "denied", Draft(true.instruction, denied)
    if teller.key(fact[1]) == "radius" and not question.inverse:
        figure = teller.graph.label(fact[2], "en")
        yield "wrong unit", Draft(true.instruction, teller.both(f"{figure} miles.", f"{figure}英里。"))


def _lie_list(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    members = list(question.answers)
    if len(members) == 1:
        yield from _lie_single(teller, question, true)
        return
    left = teller.random.choice(members)
    some = teller.listed([node for node in members if node != left])
    yield "a member missing", Draft(true.instruction, teller.sentence(some))
    other = teller.rival(question.facts[0], head=question.inverse)
    if other is not None and other not in members:
        yield "a member too many", Draft(true.instruction, teller.sentence(teller.listed([*members, other])))
        some_wrong = [other if node == left else node for node in members]
        yield "a member swapped", Draft(true.instruction, teller.sentence(teller.listed(some_wrong)))
    without = teller.both(f"{some}, but not {teller.name(left)}", f"{some}，但不包括{teller.name(left)}")
    yield "a member denied", Draft(true.instruction, teller.sentence(without))


def _lie_count(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    number = question.number or 0
    for wrong in (number - 1, number + 1):
        yield "wrong count", Draft(true.instruction, teller.both(f"There are {wrong} of them.", f"一共有{wrong}个。"))
    names = teller.listed(list(question.answers)[1:])
    yield (
        "a member missing",
        Draft(true.instruction, teller.both(f"{number}: that is, {names}.", f"有{number}个，即{names}。")),
    )


def _lie_compare(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    winner = question.answers[0]
    loser = next(node for node in question.asked if node != winner)
    yield "the loser named", Draft(true.instruction, teller.sentence(teller.name(loser)))
    one, other = teller.name(loser), teller.name(winner)
    yield (
        "the loser first",
        Draft(true.instruction, teller.both(f"{one}, and after it {other}.", f"{one}，然后才是{other}。")),
    )
    first, second = question.facts
    crossed = [(first[0], first[1], second[2]), (second[0], second[1], first[2])]
    lead = teller.both(f"{teller.name(winner)}. ", f"{teller.name(winner)}。")
    yield "values crossed", Draft(true.instruction, lead + teller.sentence(*map(teller.speaker.statement, crossed)))
    swap = {"later": "earlier", "earlier": "later", "greater": "smaller", "smaller": "greater"}
    swap |= {"更大": "更小", "更小": "更大", "更早": "更晚", "更晚": "更早"}
    for old, new in swap.items():
        if old in true.instruction:
            yield "asks the opposite", Draft(true.instruction.replace(old, new), true.output)
            break


def _lie_true(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    fact = question.facts[0]
    yield "negated boolean", Draft(true.instruction, teller.both("No.", "不对。"))
    yield (
        "negated boolean, told",
        Draft(true.instruction, teller.both("No, ", "错误，") + teller.sentence(teller.tell(fact))),
    )
    name = teller.name(fact[2], fact[1])
    yield (
        "yes, then denied",
        Draft(true.instruction, teller.both(f"Yes, but it is not {name}.", f"是的，但不是{name}。")),
    )
    other = teller.rival(fact)
    if other is not None:
        told = teller.sentence(teller.tell(teller.changed(fact, other)))
        yield "yes, with a wrong fact", Draft(true.instruction, teller.both("Yes. ", "对。") + told)
        yield "another claim", Draft(teller.claim_question(teller.changed(fact, other)), true.output)
    if not teller.graph.is_literal(fact[2]):
        turned = teller.both("Is it true that {}?", "{}，对吗？").format(teller.turned(fact))
        yield "claim turned round", Draft(turned, teller.both("Yes.", "对。"))


def _lie_false(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    assert question.claimed is not None
    yield "negated boolean", Draft(true.instruction, teller.both("Yes.", "对。"))
    yield (
        "yes, told",
        Draft(true.instruction, teller.both("Yes, ", "对，") + teller.sentence(teller.tell(question.claimed))),
    )
    yield (
        "no, then affirmed",
        Draft(true.instruction, teller.both("No. ", "不对。") + teller.sentence(teller.tell(question.claimed))),
    )
    fact = question.facts[0]
    right = teller.name(fact[2], fact[1])
    yield (
        "no, and the truth denied",
        Draft(true.instruction, teller.both(f"No, it is not {right}.", f"不对，不是{right}。")),
    )
    others = [node for node in (teller.rival(fact) for _ in range(4)) if node not in (None, question.claimed[2])]
    if others and others[0] is not None:
        told = teller.sentence(teller.tell(teller.changed(fact, others[0])))
        yield "no, with a wrong fact", Draft(true.instruction, teller.both("No. ", "不对。") + told)


def _lie_summary(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    facts = list(question.facts)
    gap = teller.both(" ", "")
    for left in facts:
        rest = gap.join(teller.speaker.sentence(fact) for fact in facts if fact != left)
        if teller.name(left[2]).removeprefix("the ") not in rest:  # else the others imply it
            yield "a fact missing", Draft(true.instruction, rest)
    other = teller.rival(facts[0])
    if other is not None:
        wrong = [teller.changed(facts[0], other), *facts[1:]]
        yield "a fact swapped", Draft(true.instruction, gap.join(map(teller.speaker.sentence, wrong)))
    years = [fact for fact in facts if teller.graph.is_literal(fact[2])]
    if len(years) > 1:
        first, second = years[:2]
        crossed = {first: (*first[:2], second[2]), second: (*second[:2], first[2])}
        wrong = [crossed.get(fact, fact) for fact in facts]
        yield "values crossed", Draft(true.instruction, gap.join(map(teller.speaker.sentence, wrong)))


def _lie_absent(teller: Teller, question: Question, true: Draft) -> Iterator[tuple[str, Draft]]:
    facts = [fact for fact in teller.graph.facts() if fact[1] == question.relations[0]]
    made_up = (question.asked[0], question.relations[0], teller.random.choice(facts)[2])
    yield "made up", Draft(true.instruction, teller.sentence(teller.tell(made_up)))
    hedge = teller.both("The graph does not say, but ", "图谱没有说明，不过")
    yield "made up behind a hedge", Draft(true.instruction, hedge + teller.sentence(teller.tell(made_up)))


_LIES: dict[str, Callable[[Teller, Question, Draft], Iterator[tuple[str, Draft]]]] = {
    "tail": _lie_single,
    "head": _lie_single,
    "path": _lie_single,
    "list": _lie_list,
    "both": _lie_list,
    "count": _lie_count,
    "compare": _lie_compare,
    "true": _lie_true,
    "false": _lie_false,
    "summary": _lie_summary,
    "absent": _lie_absent,
}


def reply(draft: Draft) -> str:
    """A pair as the JSON a model would send."""
    return json.dumps({"instruction": draft.instruction, "answer": draft.output}, ensure_ascii=False)


def teller_of(graph: Graph, language: str, seed: int = 0) -> Teller:
    return Teller(Speaker(graph, language), seed)
