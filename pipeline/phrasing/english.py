"""How a relation that nobody worded reads in English, from its label alone: sure grammar, or a neutral form.

A label is said as a noun ("capital"), as a verb ("lives in") or with "is" ("located in", "member of") where its words
leave no doubt. Everything else ("founded": who, or when?) is quoted: "The entry under “founded” for X Corp is 1999."
"""

from __future__ import annotations

import re

from kg.graph import Phrases

_PREPOSITIONS = frozenset(
    "of in on at by to from for with as into about under near through over within across during after before".split()
)
_BEFORE_ANY = frozenset(  # begins no noun phrase
    "can had are were been may does did do who what when where how which that not and or also".split()
)
# With a direct object; past forms that may be passive as well ("founded 1999") are not among them.
_TRANSITIVE = frozenset(
    """orbits borders contains causes treats follows precedes includes requires uses owns produces governs wrote employs
    affects prevents inhibits activates supports replaces feeds eats plays speaks teaches crosses joins visits visited
    won leads knows likes influences implements extends imports calls returns inherits sells buys joined loves
    manages inhabits""".split()
)
# With a preposition, and no passive.
_INTRANSITIVE = frozenset(
    """lives works lived worked studied studies graduated died dies served serves moved resides resided retired competed
    competes played plays performed performs appeared appears participated participates belongs belonged flows flowed
    leads led runs ran began begins started starts ended ends occurred occurs happened happens arrived arrives departed
    emigrated immigrated depends depended consists consisted lies stands grows grew comes came went goes orbits
    specializes specialises resulted results reacts binds applies applied refers travels travelled traveled fought
    fights collaborated collaborates interacts taught teaches speaks wrote borders feeds rises rose sits
    opened opens closed closes acted starred deals dealt""".split()
)
_BY = frozenset(  # verbs that with "by" alone are passive
    "performed played opened closed studied served led taught run sung held drawn driven chosen sold won".split()
)
_WAS = frozenset(
    """born founded built written painted composed directed invented discovered created designed killed published
    released established launched buried signed adopted filmed recorded elected appointed""".split()
)
_IS = frozenset(
    """located situated based known famous named called related married engaged made produced used owned found connected
    linked associated attached caused treated governed employed surrounded bordered followed preceded affected included
    contained derived divided dedicated devoted affiliated allied opposed compared classified considered followed
    responsible capable native adjacent close next similar different equal identical due same opposite north south east
    west northeast northwest southeast southwest part capital aware relevant dependent specific resistant sensitive
    subject parallel""".split()
)
_COUNTED = frozenset(  # said with an article before "of"
    """member instance subclass kind type form symptom sign cause effect child son daughter parent father mother brother
    sister sibling spouse wife husband friend student pupil citizen resident native moon satellite planet city town
    village river region district province state country suburb neighbour neighbor colleague author founder owner
    component subset species variant version example synonym supporter opponent subsidiary branch ancestor descendant
    successor predecessor product""".split()
)
_PLURALS = frozenset(
    """moons rivers languages effects parts members causes uses symptoms cities countries genres names awards colors
    colours types films books songs albums roles ingredients signs tags topics complications risks drugs foods genes
    organs tests""".split()
) - _TRANSITIVE  # fmt: skip
_PLURAL_ENDINGS = ("ers", "ors", "ions", "ities", "ments", "ists", "ings", "ages", "isms", "logies")
_SINGULAR = "gas lens series species atlas canvas news ics status".split()  # no plurals, though they end in s
_NO_PARTICIPLES = frozenset("seed speed need bed breed feed weed deed".split())
_NO_NOUNS = frozenset(  # as the last word of a label
    """contain treat include require produce govern own employ affect prevent inhibit activate replace eat belong know
    teach join visit extend depend implement inherit sell buy live born built made led known taught sold bought gave
    given wrote written held began begun grown grew won ran became become inhabit lies lives is has
    starring following""".split()
)


def phrases_of(label: str) -> Phrases:
    """All phrases of a relation with this label."""
    return _sure(label) or _neutral(label)


def is_neutral(label: str) -> bool:
    """Whether no rule is sure how the label is said, so that a path through the relation cannot be read."""
    return _sure(label) is None


def measure(label: str) -> str:
    """What two things are compared by: "Which has the greater …?" """
    sure = _sure(label)
    noun = re.fullmatch(r"the (.+) of \{s\} (?:is|include) \{o\}", sure.statement) if sure else None
    return noun[1] if noun else f"entry under “{label}”"


def _sure(label: str) -> Phrases | None:
    words = label.lower().split()
    first, last = words[0], words[-1]
    if first == "has" and len(words) > 1:
        noun = _noun(label.split(maxsplit=1)[1])
        return Phrases(label, noun.statement, noun.tail, noun.head, noun.ref) if noun else None
    if first in ("is", "was"):
        rest = _be(label.split(maxsplit=1)[1], words[1:], first) if len(words) > 1 else ""
        return _clause(label, rest) if rest else None
    if first in _TRANSITIVE and len(words) == 1:
        return _clause(label, label)
    if last in _PREPOSITIONS:
        if first in _INTRANSITIVE and last != "by" and _PREPOSITIONS.issuperset(words[1:]) and len(words) > 1:
            return _clause(label, label)
        rest = _be(label, words)
        return _clause(label, rest) if rest else None
    return _noun(label)


def _be(label: str, words: list[str], verb: str = "") -> str:
    """The label with "is" or "was", and an article where it needs one; "" where that is not sure."""
    first, last = words[0], words[-1]
    if len(words) == 1:
        return f"{verb or 'is'} {label}" if first in ("in", "on", "at", "near", "under", "within") else ""
    if last not in _PREPOSITIONS:
        return ""
    if first in ("a", "an", "the") and verb and last == "of":
        return f"{verb} {label}"
    regular = first.endswith("ed") and first not in _INTRANSITIVE
    passive = last == "by" and len(words) == 2 and (regular or first in _BY)
    if first in _WAS:
        return f"{verb or 'was'} {label}"
    if first in _IS or passive or words[:2] == ["also", "known"]:
        return f"{verb or 'is'} {label}"
    if last == "of" and words[-2] in _COUNTED and _may_lead(words[:-1]):
        return f"{verb or 'is'} {'an' if label[0].lower() in 'aeiou' else 'a'} {label}"
    return ""


def _may_lead(words: list[str]) -> bool:
    """Whether words before a noun are no verb of their own, as far as can be seen."""
    return not any(
        w in _TRANSITIVE | _INTRANSITIVE | _BEFORE_ANY | _PREPOSITIONS or w in ("is", "was", "has", "have")
        for w in words[:1]
    )


def _noun(label: str) -> Phrases | None:
    """The phrases of a noun, or None where it may be something else."""
    words = label.lower().split()
    first, last = words[0], words[-1]
    participle = last.endswith("ed") and last not in _NO_PARTICIPLES
    if not _may_lead(words) or last in _PREPOSITIONS or last in _NO_NOUNS or participle:
        return None
    middle = next((at for at, word in enumerate(words) if at and word in _PREPOSITIONS), len(words))
    last = words[middle - 1]  # the head: "number" of "number of moons"
    if last.endswith("s") and not last.endswith(("ss", "us", "is", *_SINGULAR)):
        phrase = middle > 1 and (first == last or not first.endswith("s"))
        if not phrase and last not in _PLURALS and not last.endswith(_PLURAL_ENDINGS):
            return None
        return Phrases(
            label, f"the {label} of {{s}} include {{o}}", f"What are the {label} of {{s}}?",
            f"What has {{o}} among its {label}?", f"what is given as {label} of {{s}}",
        )  # fmt: skip
    return Phrases(
        label, f"the {label} of {{s}} is {{o}}", f"What is the {label} of {{s}}?", f"What has {{o}} as its {label}?",
        f"the {label} of {{s}}",
    )  # fmt: skip


def _clause(label: str, predicate: str) -> Phrases:
    """A verb phrase; asked with a gap, which is right whether the answer is a person, a place or a date."""
    return Phrases(
        label,
        f"{{s}} {predicate} {{o}}",
        f"What completes the statement “{{s}} {predicate} …”?",
        f"What completes the statement “… {predicate} {{o}}”?",
        f"what {{s}} {predicate}",
    )


def _neutral(label: str) -> Phrases:
    return Phrases(
        label,
        f"the entry under “{label}” for {{s}} is {{o}}",
        f"What do the facts give under “{label}” for {{s}}?",
        f"For what do the facts give {{o}} under “{label}”?",
        f"what the facts give under “{label}” for {{s}}",
    )
