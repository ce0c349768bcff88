"""Self-KG: from the triples of a knowledge graph to instruction data that the graph vouches for (after HuaTuo, 2023).

    python -m pipeline.self_kg kg/planets.ttl --template
    python -m pipeline.self_kg kg/planets.ttl --model gpt-4o-mini --target 500
    python -m pipeline.self_kg my_graph.tsv --labels outputs/self_kg/relations.json --language zh --style scenario

Questions are sampled from the facts (kg/questions.py), so each one's answer is known before anything is asked. With
--template they are written down by templates and no model is needed; otherwise the model rephrases question and
answer, and a symbolic check compares both with the graph: what names a wrong entity, leaves one out, or turns a fact
round is rejected with the triple it broke. docs/self-kg.md is the guide.
"""

from __future__ import annotations

import asyncio
import math
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from kg.graph import PHRASE_FIELDS, Fact, GraphError, Phrases
from kg.load import load
from kg.names import split_name
from kg.questions import KINDS, Question, Sampler
from pipeline.ask import Ask
from pipeline.checks.graph_check import Asked, check
from pipeline.cli import run_command
from pipeline.errors import UsageError
from pipeline.filtering import Candidate
from pipeline.llm import Request
from pipeline.models import NoModel
from pipeline.money import Expected, Plan, plan_of
from pipeline.parsing import Unreadable, read_items, read_object
from pipeline.phrasing.speaker import Draft, Speaker, graph_language
from pipeline.prompts import Prompts
from pipeline.records import GraphSource, Record, Rejection, Stage, content_id, make_record
from pipeline.run import Made, Outlook
from pipeline.run_folder import write_json
from pipeline.self_kg_requests import EXAMPLE_FACTS, RequestWriter, read_draft, read_phrases, tidy
from pipeline.settings import GeneratorSettings, setting
from pipeline.text import readable_name, replace_surrogates

MAX_TOKENS, MAX_TOKENS_BUNDLED = 1024, 256  # of a reply
SHAPING_VERSION = 2  # of the code that samples questions, drafts them and builds prompts
PAIRS_A_REQUEST = 5  # of the scenario style
PAIR_TOKENS, KEPT_OF_ASKED = 60, 0.7  # for --plan: what a pair usually takes, and how many are kept


def _split(value: object) -> object:
    """A flag comes as a list of what stood between spaces, a TOML key as a list or one string; commas divide, too."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        return value
    return [part.strip() for one in values for part in one.split(",") if part.strip()]


def _known_kinds(value: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [kind for kind in value if kind not in KINDS]
    if wrong or not value:
        raise ValueError(f"there is no kind {wrong[0] if wrong else ''!r}; kinds are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in value)


Kinds = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_known_kinds)]


class SelfKGSettings(GeneratorSettings):
    """The shared settings, and Self-KG's own."""

    graphs: tuple[Path, ...] = setting((), "running", "the graph's files", metavar="GRAPH", positional=True)
    out: Path = setting(Path("outputs/self_kg"), "running", "the run folder", metavar="DIR")
    labels: Path | None = setting(
        None, "running", "names of entities and relations: key TAB name, or an edited relations.json", metavar="FILE"
    )
    template: bool = setting(False, "shaping", "write by templates alone, with no model")
    style: Literal["plain", "scenario"] = setting("plain", "shaping", "bare questions, or a small case around each")
    kinds: Kinds = setting(KINDS, "shaping", "what to ask, comma between: " + ",".join(KINDS), metavar="KIND,…")
    hops: int = setting(2, "shaping", "relations of a path, at most", ge=2, le=4)
    per_fact: int = setting(2, "shaping", "questions that start at a fact, at most", ge=1, le=len(KINDS))
    rephrase: Literal["auto", "both", "question"] = setting(
        "auto", "shaping", "what the model words: question and answer, or the question alone (auto: bundled model)"
    )
    fallback: Literal["auto", "on", "off"] = setting(
        "auto", "deriving", "keep the template's wording where the model's fails the check (auto: bundled model)"
    )
    max_tokens: int | None = setting(None, "shaping", "of a reply (none: 1024; the bundled model 256)", gt=15)

    @property
    def needs_model(self) -> bool:
        return not self.template

    @property
    def words_the_question_alone(self) -> bool:
        """Whether the answer is the template's: more than the question is too much for the bundled model."""
        chosen = "question" if self.model is None else "both"
        return self.style == "plain" and (chosen if self.rephrase == "auto" else self.rephrase) == "question"

    @property
    def falls_back(self) -> bool:
        return self.fallback == "on" or (self.fallback == "auto" and self.model is None)


class SelfKG:
    """A `run.Generator` whose items are questions of the graph: one each, or in scenario style up to five."""

    name = "self_kg"
    at_its_end = "every question that the graph allows has been asked"

    def __init__(self, settings: SelfKGSettings, leave_out: Collection[str] = ()) -> None:
        """`leave_out` names files of the graph that are not read."""
        if not settings.graphs:
            raise UsageError("Which graph? python -m pipeline.self_kg kg/planets.ttl --template")
        try:
            graphs = [path for path in settings.graphs if readable_name(path.name) not in leave_out]
            self.graph, self._complaints = load(graphs, settings.labels)
        except GraphError as error:
            raise UsageError(str(error)) from error
        self._settings = settings
        self._language = graph_language(self.graph) if settings.language == "auto" else settings.language
        self._speaker = Speaker(self.graph, self._language, settings.seed)
        self._sampler = Sampler(
            self.graph,
            seed=settings.seed,
            kinds=settings.kinds,
            hops=settings.hops,
            per_fact=settings.per_fact,
            can_say=self._speaker.can_say,
        )
        self._prompts = Prompts(self._language, settings.prompts)
        self._scenario = settings.style == "scenario"
        manner = settings.manner(MAX_TOKENS, MAX_TOKENS_BUNDLED)
        self._writer = RequestWriter(
            self._speaker,
            self._sampler,
            self._prompts,
            scenario=self._scenario,
            question_alone=settings.words_the_question_alone,
            manner=manner,
        )
        self.passed_over: frozenset[str] = frozenset()  # ids of facts and entities; what shows no others is not asked
        self._learning: dict[int, asyncio.Lock] = {}
        self._refused: dict[int, str] = {}  # awkward relations for which no way to say them was found, and why
        self._asked_about: dict[int, str] = {}  # awkward relation -> key of the request about it
        self._covered = bytearray(len(self.graph))
        self.shaping: dict[str, Any] = {
            "language": self._language,
            "max_tokens": manner.max_tokens,
            "templates": {} if settings.template else self._prompts.hashes(self._writer.template, "self_kg_relation"),
            "code": SHAPING_VERSION,
        }

    # ---------------------------------------------------------------- items

    async def items(self, ask: Ask, outlook: Outlook) -> AsyncIterator[tuple[Question, ...] | Rejection]:
        """What was wrong with the files, then the questions in the order the sampler ranks them."""
        for complaint in self._complaints:
            reason = replace_surrogates(f"{complaint.where}: {complaint.why}")
            yield self._rejection(ask, "file", "load", reason, value=complaint.text or None)
        self._write_relations()
        left_out: set[int] = set()
        for questions in self._groups():
            if self._settings.template:
                awkward = {r for question in questions for r in self._awkward(question)}
                for relation in sorted(awkward - left_out):
                    yield self._left_out(ask, relation)
                left_out |= awkward
                questions = tuple(question for question in questions if not self._awkward(question))
            if questions:
                yield questions

    @property
    def live(self) -> set[str]:
        """The ids of all facts there are, and of all that they speak of."""
        return set(self._ids(self.graph.facts()))

    def shown_by(self, item: tuple[Question, ...]) -> list[str]:
        """The ids of the facts and entities that some questions speak of."""
        facts = [fact for question in item for fact in question.facts]
        nodes = [node for question in item for node in (*question.asked, *question.answers)]
        nodes += [question.claimed[2] for question in item if question.claimed is not None]
        return list(dict.fromkeys((*self._ids(facts), *(content_id(self.graph.keys[node]) for node in nodes))))

    def _ids(self, facts: Iterable[Fact]) -> Iterator[str]:
        for fact in facts:
            keys = self.graph.key_fact(fact)
            yield content_id(*keys)
            yield content_id(keys[0])
            yield content_id(keys[2])

    def _groups(self) -> Iterator[tuple[Question, ...]]:
        if self._scenario:
            groups = self._sampler.groups(PAIRS_A_REQUEST)
        else:
            groups = ((question,) for question in self._sampler.questions())
        if not self.passed_over:
            return groups
        return (item for item in groups if not self.passed_over.issuperset(self.shown_by(item)))

    def _awkward(self, question: Question) -> list[int]:
        return list(filter(self._speaker.is_awkward, _relations_of(question)))

    def _awkward_ever(self, question: Question) -> list[int]:
        """Those that were awkward before anything was learned, too."""
        return list(filter(self._speaker.was_awkward, _relations_of(question)))

    def _left_out(self, ask: Ask, relation: int) -> Rejection:
        key = self.graph.relation_keys[relation]
        name = "Chinese" if self._language == "zh" else "English"
        why = f"has no name in {name}" if self._speaker.is_foreign(relation) else "reads badly"
        reason = (
            f"the relation {key!r} {why} and nobody said how to say it: its questions are left out."
            " Name it in relations.json, beside this file, and pass that as --labels, or let a model do it"
        )
        if self._speaker.is_foreign(relation):
            reason += f"; or ask in its own language (--language {'en' if self._language == 'zh' else 'zh'})"
        return self._rejection(ask, "file", "awkward_relation", reason, value=key)

    # ---------------------------------------------------------------- one item

    async def make(self, item: tuple[Question, ...], ask: Ask) -> Made:
        """The records of some questions: from templates, or as the model rephrases them."""
        keys: list[str] = []
        if not self._settings.template:
            for relation in dict.fromkeys(r for question in item for r in self._awkward_ever(question)):
                await self._learn(relation, ask)
                keys.append(self._asked_about[relation])
        if self._settings.template:
            return [self._from_template(question) for question in item]
        drafts = [self._speaker.draft(question) for question in item]
        request = self._writer.questions(item, drafts)
        keys.append(ask.key(request))
        reply = await ask(request, shows=[("", id_) for id_ in self.shown_by(item)])
        made: Made = []
        try:
            if self._scenario:
                made += self._read_pairs(ask, item, read_items(reply, "pairs").values, keys)
            else:
                draft = read_draft(read_object(reply), drafts[0] if self._settings.words_the_question_alone else None)
                made.append(self._candidate(ask, item[0], draft, keys))
        except Unreadable as unreadable:
            ask.counts.unreadable += 1
            why, detail = unreadable.reason, unreadable.detail
            made.append(self._rejection(ask, "reply", "parse", detail, value=why, questions=item, requests=keys))
        return made + self._fallbacks(item, made)

    def _fallbacks(self, item: tuple[Question, ...], made: Made) -> Made:
        """The template's wording of each question whose wording by the model the graph does not vouch for.

        Of relations that the model itself had to put into words there is none: nobody vouches for those.
        """
        if not self._settings.falls_back or self._settings.filters.get("graph") is False:
            return []
        sound = {
            entry.asked.question
            for entry in made
            if isinstance(entry, Candidate) and entry.asked is not None and is_sound(entry)
        }
        return [self._from_template(q) for q in item if q not in sound and not self._awkward_ever(q)]

    def _read_pairs(self, ask: Ask, item: tuple[Question, ...], values: list[Any], keys: list[str]) -> Made:
        """The pairs by their ids, in the order of the questions, whatever order they came in."""
        wanted = {f"q{number}": question for number, question in enumerate(item, 1)}
        found: dict[str, Any] = {}
        made: Made = []
        for value in values:
            id_ = value.get("id") if isinstance(value, dict) else None
            if isinstance(id_, str) and id_ in wanted and id_ not in found:
                found[id_] = value
            else:
                reason = f"a pair with the id {id_!r}, which is unknown or comes twice"
                made.append(self._rejection(ask, "record", "parse", reason, questions=item, requests=keys))
        for id_, question in wanted.items():
            try:
                made.append(self._candidate(ask, question, read_draft(found[id_]), keys))
            except (KeyError, Unreadable) as error:
                reason = "the reply holds no pair for it" if isinstance(error, KeyError) else error.detail
                made.append(self._rejection(ask, "record", "parse", reason, questions=(question,), requests=keys))
        return made

    def _candidate(self, ask: Ask, question: Question, draft: Draft, keys: list[str]) -> Candidate:
        """A question as a model worded it."""
        names = [self._writer.template, *(["self_kg_relation"] if len(keys) > 1 else [])]
        plain = self._speaker.draft(question).instruction if self._settings.words_the_question_alone else ""
        return self._made(question, draft, ask.model.identity, self._prompts.hashes(*names), keys, plain)

    def _from_template(self, question: Question) -> Candidate:
        draft = self._speaker.draft(question, scenario=self._scenario)
        return self._made(question, draft, NoModel.identity, {}, [])

    def _made(
        self, question: Question, draft: Draft, model: str, prompts: dict[str, str], keys: list[str], plain: str = ""
    ) -> Candidate:
        record = make_record(
            instruction=draft.instruction,
            output=draft.output,
            task="kg",
            generator=self.name,
            model=model,
            language=self._language,
            source=self._source([question]),
            prompts=prompts,
            requests=keys,
        )
        return Candidate(record, asked=Asked(question, self._speaker, self._scenario, plain))

    # ---------------------------------------------------------------- --plan

    def plan(self, target: int | None, stored: Callable[[Request], bool]) -> Plan:
        """What the questions take that are not stored yet, in their order as far as the target reaches."""
        plan = plan_of(
            self._expected(target, stored),
            f"a pair takes {PAIR_TOKENS} tokens; to a target, {KEPT_OF_ASKED:.0%} of the pairs are kept. A question"
            " about a relation that the model has still to put into words counts as not stored.",
        )
        kept = 1.0 if self._settings.template else KEPT_OF_ASKED
        most = math.inf if target is None else target
        records = 0.0
        for item in self._groups():
            records += kept * len(item)
            if records >= most:
                break
        expected = Expected(min(records, most), PAIR_TOKENS / 2, PAIR_TOKENS / 2, PAIR_TOKENS / 2)
        return replace(plan, expected=expected)

    @property
    def kept_an_item(self) -> float:
        return KEPT_OF_ASKED * (PAIRS_A_REQUEST if self._scenario else 1)

    def _expected(self, target: int | None, stored: Callable[[Request], bool]) -> Iterator[tuple[Request, float]]:
        if self._settings.template:
            return
        wanted, asked_about = 0, set[int]()
        for item in self._groups():
            if target is not None and wanted >= target / KEPT_OF_ASKED:
                return
            wanted += len(item)
            for relation in {r for question in item for r in self._awkward_ever(question)} - asked_about:
                asked_about.add(relation)
                request = self._writer.relation(relation)
                if not stored(request):
                    yield request, PAIR_TOKENS
            request = self._writer.questions(item, [self._speaker.draft(question) for question in item])
            if not stored(request):
                yield request, PAIR_TOKENS * len(item)

    # ---------------------------------------------------------------- awkward relations

    async def _learn(self, relation: int, ask: Ask) -> None:
        """Ask once how an awkward relation is said. Where the reply is of no use, its tidied key has to do."""
        async with self._learning.setdefault(relation, asyncio.Lock()):
            if relation in self._asked_about:
                return
            request = self._writer.relation(relation)
            examples = self._sampler.examples(relation, EXAMPLE_FACTS)
            reply = await ask(request, shows=[("", id_) for id_ in self._ids(examples)])
            try:
                phrases = read_phrases(read_object(reply))
            except Unreadable as unreadable:
                ask.counts.unreadable += 1
                self._refused[relation] = unreadable.detail
                phrases = Phrases(label=tidy(split_name(self.graph.relation_keys[relation])))
            self._speaker.learn(relation, phrases)
            self._asked_about[relation] = ask.key(request)
            self._write_relations()

    def _write_relations(self) -> None:
        """How every relation is said, in a file to look at, edit, and pass as --labels."""
        said = {}
        for relation, key in enumerate(self.graph.relation_keys):
            phrases = asdict(self._speaker.phrases(relation))
            said[key] = {self._language: {name: phrases[name] for name in PHRASE_FIELDS}}
        write_json(self._settings.out / "relations.json", dict(sorted(said.items())))

    # ---------------------------------------------------------------- coverage, sources, rejections

    def cover(self, entry: Record | Rejection, *, kept: bool) -> None:
        """Mark the facts of a kept record."""
        for source in entry.source if kept else ():
            if isinstance(source, GraphSource):
                for triple in source.triples:
                    at = bisect_left(self.graph.by_subject, self.graph.packed(triple))
                    self._covered[at] = 1

    def coverage(self) -> dict[str, Any]:
        covered = {self.graph.fact_at(at)[1] for at in range(len(self._covered)) if self._covered[at]}
        return {
            "graph": {
                "facts": len(self.graph),
                "facts_covered": sum(self._covered),
                "relations": len(self.graph.relation_keys),
                "relations_covered": len(covered),
                "relations_verbalised": len(self._asked_about) - len(self._refused),
                "relations_not_verbalised": {self.graph.relation_keys[r]: why for r, why in self._refused.items()},
            }
        }

    def _source(self, questions: Sequence[Question]) -> GraphSource:
        facts = dict.fromkeys(fact for question in questions for fact in question.facts)
        return GraphSource(triples=tuple(map(self.graph.key_fact, facts)))

    def _rejection(
        self,
        ask: Ask,
        stage: Stage,
        filter_: str,
        reason: str,
        value: str | None = None,
        questions: Sequence[Question] = (),
        requests: Sequence[str] = (),
    ) -> Rejection:
        return Rejection(
            stage=stage,
            filter=filter_,
            reason=reason,
            value=value,
            generator=self.name,
            model=ask.model.identity,
            language=self._language,
            source=(self._source(questions),) if questions else (),
            requests=tuple(requests),
        )


def _relations_of(question: Question) -> dict[int, None]:
    """All relations that its draft speaks of, each once."""
    return dict.fromkeys((*question.relations, *(fact[1] for fact in question.facts)))


def is_sound(candidate: Candidate) -> bool:
    """Whether the graph vouches for it; the filter `graph` says so again, and why not."""
    assert candidate.asked is not None
    return check(candidate.asked, candidate.record.instruction, candidate.record.output) is None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(SelfKGSettings, argv, command="pipeline.self_kg", about=__doc__ or "", prepare=SelfKG)


if __name__ == "__main__":
    sys.exit(main())
