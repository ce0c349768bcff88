"""What a sentence says about a graph, as far as symbols can tell: names, values, negations, who does what to whom."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from kg.graph import Fact, Graph, Mention
from kg.names import ARTICLES, language_of_name, literal_text, normal, tokens
from kg.values import Value, same_number, unit_in, value_of, values_in
from pipeline.phrasing.speaker import Speaker, fill

Token = str | frozenset[int]  # a word, or the nodes that a name may mean

NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|none|nobody|nothing|no|without|except|cannot|hardly|rather than|instead of|unlike|"
    r"other than|false|incorrect|wrong|untrue|fails? to|denied|denies)\b|n['’]t\b"
    r"|不(?![仅但过同止只单光久少断论管愧])|没(?!错)|无(?![论数])|(?<!除)非(?![常洲])|未(?!来)|除了|错误|错(?!过)|假|否[认定]|误(?!差)|谣传|谎称",
    re.IGNORECASE,
)
_PREPOSITIONS = frozenset(
    "of in on at around round to from for with after about near within inside under over behind".split()
)
_BE = frozenset("is are was were be been being gets got".split())
_EMPTY = frozenset(
    "is are was were has have had include includes of in on at by to from for with as and 的 是 了 于 在".split()
)
_IS_ZH = re.compile("(?:[也正就都]|确实|的确)?是(?:不是)?|不是|是否[是为]")
_AROUND_NAMES = " 《》“”「」『』"  # 《将进酒》是李白的代表作
_SENTENCE = re.compile(r"[.!?;](?=\s|$)|[。！？；\n]")


class Reading:
    """A text with its names and values found. `graph` says what is a name."""

    def __init__(self, text: str, graph: Graph) -> None:
        self.text, self.graph = text, graph

    @cached_property
    def mentions(self) -> list[Mention]:
        """Names in the text; a number is a value and no name."""
        return [m for m in self.graph.mentions(self.text) if value_of(self.text[m.start : m.end]) is None]

    @cached_property
    def masked(self) -> str:
        """The text with names blanked out, offsets kept."""
        text = self.text
        for mention in self.mentions:
            text = text[: mention.start] + " " * (mention.end - mention.start) + text[mention.end :]
        return text

    @cached_property
    def values(self) -> list[Value]:
        return values_in(self.masked)

    def tokens(self, *nodes: int) -> list[Token]:
        """The words in order, articles left out; the names of these nodes are one token each."""
        found: list[Token] = []
        names = {m.start: m for m in self.mentions if not set(nodes).isdisjoint(m.nodes)}
        end = 0
        for word, start, stop in tokens(self.text):
            if start in names:
                found.append(frozenset(names[start].nodes))
                end = names[start].end
            elif start >= end and word not in ARTICLES:
                found.append(word)
            end = max(end, stop)
        return found

    def meant(self, mention: Mention) -> list[int]:
        """The nodes a mention means: those that are written just so, if there are any, else all of the name."""
        written = self.text[mention.start : mention.end]
        exact = [n for n in mention.nodes if written in {name.removeprefix("the ") for name in self.graph.names(n)}]
        return exact or list(mention.nodes)

    @cached_property
    def named(self) -> frozenset[int]:
        return frozenset(node for mention in self.mentions for node in mention.nodes)

    def says(self, node: int, unit: str = "") -> bool:
        """Whether the text names this node: an entity by any of its names, a value in any spelling."""
        return bool(self.places(node, unit))

    def places(self, node: int, unit: str = "") -> list[int]:
        """The offsets at which the text names this node."""
        wanted = wanted_value(self.graph, node, unit)
        if wanted is not None:
            return [value.start for value in self.values if same_number(value, wanted)]
        if self.graph.is_literal(node):
            found = f" {normal(self.text)} ".find(f" {normal(literal_text(self.graph.keys[node]))} ")
            return [found] if found >= 0 else []
        return [mention.start for mention in self.mentions if node in mention.nodes]

    def holds(self, pattern: re.Pattern[str]) -> bool:
        """Whether the text holds it otherwise than inside a name: 没有 where 有 is a name, but not the 未 of 未名湖."""
        return any(
            not any(m.start <= found.start() and found.end() <= m.end for m in self.mentions)
            for found in pattern.finditer(self.text)
        )

    def negations(self, allowed: str = "") -> list[int]:
        """Offsets of negations outside names, but for those that `allowed`, a relation's own wording, holds."""
        own = {match.group().lower() for match in NEGATION.finditer(allowed)}
        return [m.start() for m in NEGATION.finditer(self.masked) if m.group().lower() not in own]

    def sentences(self) -> Iterator[Reading]:
        start = 0
        for match in _SENTENCE.finditer(self.masked):  # a name may hold a full stop
            if self.text[start : match.start()].strip():
                yield Reading(self.text[start : match.start()], self.graph)
            start = match.end()
        if self.text[start:].strip():
            yield Reading(self.text[start:], self.graph)


def wanted_value(graph: Graph, node: int, unit: str = "") -> Value | None:
    """The value a node is, with the unit its relation's name gives where it has none; None for an entity."""
    label = literal_text(graph.keys[node]) if graph.is_literal(node) else graph.label(node, "en")
    if not any(map(str.isdigit, label)):
        return None
    value = value_of(label)
    if value is not None and value.dimension == "" and unit:
        value = value_of(f"{label} {unit}") or value
    return value


def unit_of(speaker: Speaker, relation: int) -> str:
    """The unit in a relation's wording; years of the calendar have none."""
    phrases = speaker.phrases(relation)
    unit = unit_in(phrases.label) or unit_in(phrases.tail)
    return "" if unit in ("year", "years", "年") else unit


# ---------------------------------------------------------------- who does what to whom


def swapped(reading: Reading, fact: Fact, speaker: Speaker) -> bool:
    """Whether the text puts the fact's object where the subject belongs, or the other way round.

    First the relation's own wording is looked for, turned round and the right way. Where the text uses other words,
    the order of the two names and the voice decide, if the relation's wording is a verb; for a relation worded as
    "is … of" other words tell nothing, and only entities that could change places are turned away.
    """
    subject, relation, object_ = fact
    if subject == object_ or set(speaker.graph.names(subject)) & set(speaker.graph.names(object_)):
        return False
    parts = _parts(speaker.phrases(relation).statement)
    if _worded(reading, parts, object_, subject) or _asked_round(reading, fact, speaker):
        return True
    if not {subject, object_} <= reading.named or _worded(reading, parts, subject, object_):
        return False
    middle = parts[1]
    active = _is_active(middle)
    if active or "by" in middle:
        by = not active or "由" in middle or "被" in middle
        return _agent(reading, subject, object_, by) != (object_ if by else subject)
    return not _told_of(reading, subject, object_)


def _is_active(middle: Sequence[str]) -> bool:
    """Whether a relation's words between the names are a verb and no "is …"."""
    return bool(_content(middle)) and middle[0] not in _BE


def _worded(reading: Reading, parts: Parts, first: int, second: int) -> bool:
    """Whether the text says the relation in its own words from `first` to `second`."""
    before, middle, after = parts
    text, patterns = reading.tokens(first, second), list[list[Token | int]]()
    if _content(before):
        patterns += [[*before[-2:], first], [first, "s", *(word for word in before if word not in _EMPTY)]]
    if _content(middle):
        patterns += [[first, *middle], [*middle, second]]
        if "by" in middle:
            patterns.append([second, middle[middle.index("by") - 1], first])
        elif _is_active(middle) and "被" not in middle and "由" not in middle:
            patterns.append([second, "被", first])
            patterns += [[second, be, word, "by", first] for be in _BE for word in _after(text, be)]
    if _content(after):
        patterns.append([second, *after])
    return any(len(pattern) > 1 and _holds(text, pattern) for pattern in patterns if pattern)


def _asked_round(reading: Reading, fact: Fact, speaker: Speaker) -> bool:
    """Whether the text is the relation's own question with the wrong end filled in."""
    phrases = speaker.phrases(fact[1])
    patterns = (_pattern(phrases.head, {"o": fact[0]}), _pattern(phrases.tail, {"s": fact[2]}))
    return any(len(pattern) > 1 and _holds(reading.tokens(fact[0], fact[2]), pattern) for pattern in patterns)


def _agent(reading: Reading, one: int, other: int, by: bool) -> int:
    """Which of two named nodes acts, by their order and the voice: "X finds Y", "Y is found by X", "Y由X发现".

    `by`: the relation names who acted second ("was discovered by"), so that "the discovery of Y" is no one's act.
    """
    first, second, before, between, after = _around(reading, one, other)
    passive = re.search(r"\bby\b|[被由]|的是", between) or (by and between.endswith("是"))
    if _IS_ZH.fullmatch(between) and not by:  # Y's … or one of Y's?
        return second if re.match("的(?!一)", after) else first
    fronted = (before in _PREPOSITIONS and before != "by") or (by and before.endswith("ing"))
    cleft = re.fullmatch(r",?\s*(?:that|which|whom|who)(?:\s+the)?", between)
    genitive = by and re.match(r"['’]s\b|的", between)
    return second if passive or fronted or cleft or genitive else first


def _told_of(reading: Reading, subject: int, object_: int) -> bool:
    """Whether the subject is what a sentence speaks of, and the object is tied to it by a preposition or an "is".

    Where a relation is worded as "is … of", any other verb may turn it round ("NASA runs X", "X runs NASA"), so only
    this is taken: "X belongs to NASA", "the agency behind X is NASA", "NASA is the home of X", "in Pisa was X born".
    """
    first, second, before, between, after = _around(reading, subject, object_)
    if re.fullmatch(r"(?:is|was) the (?:[\w-]+ ){1,3}of(?: the)?", between) or before in _PREPOSITIONS - {
        "of",
        "behind",
    }:
        return second == subject
    if language_of_name(between) == "zh":  # "X是Y的一个地方", "负责X的是Y", but "Y是X的出生地"
        return (second if between.endswith("是") and re.match("的(?!一)", after) else first) == subject
    words = between.split()
    while words and words[-1] in ARTICLES:
        del words[-1]
    return first == subject and bool(words) and words[-1] in _PREPOSITIONS | _BE | {"by"}


def _around(reading: Reading, one: int, other: int) -> tuple[int, int, str, str, str]:
    """Two named nodes in their order, the word before them, what stands between and what behind, in small letters."""
    places = {node: (reading.places(node) or [0])[0] for node in (one, other)}
    first, second = (one, other) if places[one] < places[other] else (other, one)
    start, stop = places[first], places[second]
    ends = {mention.start: mention.end for mention in reading.mentions}
    lead = [word.strip("“\"'(,") for word in reading.text[:start].lower().split()]
    before = next((word for word in reversed(lead) if word not in ARTICLES), "")
    between = reading.masked[ends.get(start, start) : stop].lower().strip(_AROUND_NAMES)
    return first, second, before, between, reading.masked[ends.get(stop, stop) :].lower().strip(_AROUND_NAMES)


Parts = tuple[list[str], list[str], list[str]]


def _parts(statement: str) -> Parts:
    """The words before the first name, between the two, and after the second; the subject first."""
    first, _, rest = statement.partition("{s}")
    middle, _, last = rest.partition("{o}")
    if "{o}" in first:  # the object stands first: nothing to compare by
        return [], [], []
    return _words(first), _words(middle), _words(last)


def _words(text: str) -> list[str]:
    return [word for word, _, _ in tokens(text) if word not in ARTICLES]


def _content(words: Sequence[str]) -> list[str]:
    return [word for word in words if word not in _EMPTY] and list(words)


def _after(text: Sequence[Token], be: str) -> set[str]:
    return {word for one, word in itertools.pairwise(text) if one == be and isinstance(word, str)}


def _pattern(template: str, filled: dict[str, int]) -> list[Token | int]:
    """A template's words with a node in the place of its name."""
    parts = re.split(r"\{([so])\}", template)
    found: list[Token | int] = []
    for number, part in enumerate(parts):
        if number % 2:
            found.append(filled[part]) if part in filled else None
        else:
            found += _words(part)
    return found if any(isinstance(part, int) for part in found) else []


def _holds(text: Sequence[Token], pattern: Sequence[Token | int]) -> bool:
    """Whether the pattern stands in the text, word by word."""
    # "was Pluto visited" is passive and does not say that Pluto visited
    starts_passive = len(pattern) == 2 and isinstance(pattern[0], int)
    return any(
        not (starts_passive and at and text[at - 1] in _BE)
        and all(_fits(text[at + offset], part) for offset, part in enumerate(pattern))
        for at in range(len(text) - len(pattern) + 1)
    )


def _fits(token: Token, part: Token | int) -> bool:
    return part in token if isinstance(part, int) and isinstance(token, frozenset) else _same_word(token, part)


def _same_word(token: Token, part: Token | int) -> bool:
    return isinstance(token, str) and isinstance(part, str) and stem(token) == stem(part)


# ---------------------------------------------------------------- cues: the words by which a relation is recognised


def cues(speaker: Speaker, relation: int) -> set[str]:
    """The telling words of a relation's wording, cut to their stems."""
    phrases = speaker.phrases(relation)
    text = " ".join((phrases.label, fill(phrases.statement, s=" ", o=" "), fill(phrases.tail, s=" ", o=" ")))
    return {stem(word) for word in _words(text) if word not in _EMPTY and word not in _ASKING}


def cue_places(reading: Reading, stems: Iterable[str]) -> list[int]:
    """Where a text has one of these words, outside names."""
    wanted = set(stems)
    return [start for word, start, _ in tokens(reading.masked) if stem(word) in wanted]


def stem(word: str) -> str:
    """A word without its commonest endings, so that "orbits", "orbiting" and "orbited" are one."""
    if not word.isascii() or len(word) < 5:
        return word
    return re.sub(r"(?:ing|ed|es|s|er|ery|ies|e|y)$", "", word)[:6]


_ASKING = frozenset(
    "what which who whom whose where when how many much does do did that this there it its go once name "
    "什 么 哪 个 谁 多 少 何 几".split()
)
