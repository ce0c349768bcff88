"""What Self-KG asks of a model and how replies are read: questions in its own words, and how a relation is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kg.graph import Phrases
from kg.names import split_name
from kg.questions import Question, Sampler
from pipeline.llm import Manner, Request, list_schema, object_schema
from pipeline.parsing import Unreadable
from pipeline.phrasing.speaker import Draft, Speaker
from pipeline.prompts import Prompts
from pipeline.self_kg_examples import EXAMPLES, RELATION_EXAMPLES, REPHRASED
from pipeline.text import one_line, replace_surrogates

EXAMPLE_FACTS = 2  # that show how an awkward relation is used


class RequestWriter:
    """Writes the requests about a graph. What it is given at the start is all that shapes them."""

    def __init__(
        self,
        speaker: Speaker,
        sampler: Sampler,
        prompts: Prompts,
        *,
        scenario: bool,
        question_alone: bool,
        manner: Manner,
    ) -> None:
        self._speaker, self._sampler, self._prompts = speaker, sampler, prompts
        self._scenario, self._question_alone = scenario, question_alone
        self._manner = manner
        single = "self_kg_rephrase" if question_alone else "self_kg_question"
        self.template = "self_kg_scenario" if scenario else single

    def questions(self, item: Sequence[Question], drafts: Sequence[Draft]) -> Request:
        """For questions and answers in the model's own words: of one question, or of a scenario's several."""
        return self._several(item, drafts) if self._scenario else self._single(item[0], drafts[0])

    def relation(self, relation: int) -> Request:
        """For how an awkward relation is said."""
        facts = self._sampler.examples(relation, EXAMPLE_FACTS)
        shown = "; ".join(f"{self._speaker.name(s)} — {self._speaker.name(o)}" for s, _, o in facts)
        values = {"relation": split_name(self._speaker.graph.relation_keys[relation]), "facts": shown}
        fields = {name: {"type": "string"} for name in ("label", "statement", "tail", "head")}
        messages = self._prompts.chat("self_kg_relation", values, RELATION_EXAMPLES[self._speaker.language])
        return self._manner.request(messages, object_schema(fields))

    def _single(self, question: Question, draft: Draft) -> Request:
        language = self._speaker.language
        if self._question_alone:
            examples = [({"question": plain}, _json({"instruction": said})) for plain, said in REPHRASED[language]]
            messages = self._prompts.chat(self.template, {"question": draft.instruction}, examples)
            return self._manner.request(messages, object_schema({"instruction": {"type": "string"}}))
        values = {"facts": self._facts([question]), "question": draft.instruction, "answer": draft.output}
        schema = object_schema({"instruction": {"type": "string"}, "answer": {"type": "string"}})
        return self._manner.request(self._prompts.chat(self.template, values, EXAMPLES[language]), schema)

    def _several(self, item: Sequence[Question], drafts: Sequence[Draft]) -> Request:
        lines = [{"id": f"q{n}", "question": d.instruction, "answer": d.output} for n, d in enumerate(drafts, 1)]
        values = {
            "entity": self._speaker.name(item[0].asked[0]),
            "facts": self._facts(item),
            "questions": _json(lines),
        }
        pair = object_schema({name: {"type": "string"} for name in ("id", "instruction", "answer")})
        return self._manner.request(self._prompts.chat(self.template, values), list_schema("pairs", pair, len(item)))

    def _facts(self, questions: Sequence[Question]) -> str:
        said = dict.fromkeys(sentence for question in questions for sentence in self._speaker.sentences(question))
        if self._speaker.language == "zh":
            return "".join(said) or "图谱中没有相关事实。"
        return " ".join(said) or "the graph holds none that answers this."


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- what came back


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


def tidy(label: str) -> str:
    """A relation's name without words that follow themselves: "film film genre" is "film genre"."""
    words = label.replace(".", " ").split()
    return " ".join(word for at, word in enumerate(words) if not at or word != words[at - 1])
