"""Reading what a model wrote for Self-KG: a question with its answer, or how a relation is said."""

from __future__ import annotations

from typing import Any

from kg.graph import Phrases
from kg.questions import Question
from pipeline.kg_phrases import Draft
from pipeline.parsing import Unreadable
from pipeline.text import one_line, replace_surrogates


def read_draft(value: Any, plain: Draft | None = None) -> Draft:
    """A question and its answer out of a reply's object; of `plain` the answer, where only a question was asked for.

    Raises Unreadable.
    """
    if plain is not None and isinstance(value, dict):
        value = {"answer": plain.output, "instruction": value.get("instruction")}
    texts = [value.get(name) if isinstance(value, dict) else None for name in ("instruction", "answer")]
    if not all(isinstance(text, str) for text in texts):
        raise Unreadable("wrong_shape", f"no instruction and answer: {str(value)[:80]}")
    instruction, output = (replace_surrogates(str(text)).strip() for text in texts)
    return Draft(instruction, output)


def read_phrases(value: dict[str, Any]) -> Phrases:
    """How a relation is said; each part must hold the names it needs and no other. Raises Unreadable."""
    texts = {
        name: one_line(replace_surrogates(str(value.get(name, "")))) for name in ("label", "statement", "tail", "head")
    }
    needs = {"label": (False, False), "statement": (True, True), "tail": (True, False), "head": (False, True)}
    for name, text in texts.items():
        holds = (text.count("{s}"), text.count("{o}"))
        if not text or holds != needs[name]:
            raise Unreadable("wrong_shape", f"{name!r} needs {needs[name]} of {{s}} and {{o}}: {text[:80]!r}")
    texts["statement"] = texts["statement"].rstrip(".。")
    return Phrases(**texts)


def relations_in(question: Question) -> tuple[int, ...]:
    """All relations that its draft speaks of."""
    return (*question.relations, *(fact[1] for fact in question.facts))


def tidy(label: str) -> str:
    """A relation's name without words that follow themselves: "film film genre" is "film genre"."""
    words = label.replace(".", " ").split()
    return " ".join(word for at, word in enumerate(words) if not at or word != words[at - 1])
