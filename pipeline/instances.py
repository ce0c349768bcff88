"""From one instruction to its instances: identified first, then output-first or input-first (Wang et al. 2023, 2.2).

Classification goes output-first: the label, then an input that deserves it; asked the other way round, a model
favours one label. Generation goes input-first. Each is a request of its own; further turns are one more each.
The examples in the prompts are seeds, so they speak of the user's field and not of ours.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pipeline.ask import Ask
from pipeline.filtering import Candidate
from pipeline.llm import Manner, Reply, Request, list_schema, object_schema
from pipeline.parsing import Unreadable, read_items, read_value
from pipeline.prompts import Prompts
from pipeline.records import PromptSource, Record, Rejection, Stage, Task, Turn, make_record
from pipeline.run import Made
from pipeline.seed_tasks import Instance, SeedTask, fingerprint
from pipeline.text import replace_surrogates

GENERATOR = "self_instruct"
IDENTIFYING_TOKENS = 64  # of the reply, unless --max-tokens gives room to think first
TEMPLATES = (
    "self_instruct_identify",
    "self_instruct_output_first",
    "self_instruct_input_first",
    "self_instruct_next_turn",
)


@dataclass(frozen=True, slots=True)
class NewTask:
    """An instruction that joined the pool; `request` and `prompts` are those that brought it."""

    id: str
    instruction: str
    source: PromptSource
    request: str
    prompts: dict[str, str]


Example = tuple[Mapping[str, object], str]  # the values of a template's `# user`, and the answer


class Examples:
    """Seeds worked out as examples: the same ones throughout a run, so that servers can cache them."""

    def __init__(self, seeds: Sequence[SeedTask], seed: int) -> None:
        random_ = random.Random(f"{seed}:examples")
        labelled = _short_ones([task for task in seeds if task.is_classification], random_)
        written = _short_ones([task for task in seeds if not task.is_classification], random_)
        with_input = [task for task in written if task.instances[0].input]
        without = [task for task in written if not task.instances[0].input]
        pairs = zip_longest(written[:6], labelled[:6])  # one of each in turn: a small model copies what comes often
        self.identify: Sequence[Example] = [
            ({"instruction": task.instruction}, json.dumps({"classification": task.is_classification}))
            for pair in pairs
            for task in pair
            if task is not None
        ]
        self.output_first = [_worked_out(task, ("label", "input")) for task in labelled[:3]]
        self.input_first = [
            _worked_out(task, ("input", "output")) for task in (*without[:1], *with_input[:2], *without[1:2])
        ]
        multi_turn = [task for task in seeds if any(instance.history for instance in task.instances)]
        shown = (*written[:6], *labelled[:6], *with_input[:2], *without[:2], *multi_turn[:2])
        self.shown = [("", id_) for id_ in dict.fromkeys(fingerprint([task]) for task in shown)]
        self.next_turn: Sequence[Example] = [
            (
                {"conversation": _conversation(instance.history)},
                _json({"user": instance.input or task.instruction, "assistant": instance.output}),
            )
            for task in seeds
            for instance in task.instances
            if instance.history
        ][:2]


class InstanceWriter:
    """Writes the records of a task. What it is given at the start is all that shapes its requests."""

    def __init__(
        self,
        prompts: Prompts,
        examples: Examples,
        *,
        language: str,
        classification_only: bool,
        turns: int,
        per_task: int,
        room: int,
        manner: Manner,
    ) -> None:
        """`room` is what the user gave each reply to think in, 0 where nothing was said of it."""
        self._prompts, self._examples, self._language = prompts, examples, language
        self._identifying_tokens = max(IDENTIFYING_TOKENS, room)
        self._classification_only, self._turns, self._per_task = classification_only, turns, per_task
        self._manner = manner

    async def write(self, task: NewTask, ask: Ask) -> Made:
        """The task's candidates, or the one rejection that a reply which cannot be read becomes."""
        trail = Trail(task, ask, dict(task.prompts), [task.request])
        try:
            is_classification = await self._identify(trail)
            if self._classification_only and not is_classification:
                return [self._rejection(trail, "instruction", "classification_only", "identified as generation")]
            return await self._instances(trail, is_classification)
        except Unreadable as unreadable:
            ask.counts.unreadable += 1
            return [self._rejection(trail, "reply", "parse", unreadable.detail, value=unreadable.reason)]

    def identify_request(self, instruction: str) -> Request:
        """Is it a classification task?"""
        messages = self._prompts.chat("self_instruct_identify", {"instruction": instruction}, self._examples.identify)
        schema = object_schema({"classification": {"type": "boolean"}})
        tokens = self._identifying_tokens
        return Request(messages, max_tokens=tokens, temperature=0.0, schema=schema, extra=self._manner.extra)

    def instances_request(self, instruction: str, is_classification: bool) -> Request:
        """Its instances: the label first, or the input first."""
        examples = self._examples.output_first if is_classification else self._examples.input_first
        values = {"instruction": instruction, "count": self._per_task}
        fields = object_schema({name: {"type": "string"} for name in _names(is_classification)})
        messages = self._prompts.chat(_template(is_classification), values, examples)
        return self._manner.request(messages, list_schema("instances", fields, self._per_task))

    async def _identify(self, trail: Trail) -> bool:
        request = self.identify_request(trail.task.instruction)
        value = read_value(await self._asked(trail, "self_instruct_identify", request), "classification")
        if not isinstance(value, bool):
            raise Unreadable("wrong_shape", f"'classification' is no truth value: {value!r}")
        return value

    async def _instances(self, trail: Trail, is_classification: bool) -> Made:
        first, second = _names(is_classification)
        request = self.instances_request(trail.task.instruction, is_classification)
        items = read_items(await self._asked(trail, _template(is_classification), request), "instances")
        if not items.values:
            raise Unreadable("no_instances", "the list of instances is empty")
        instances = items.values[: self._per_task]
        last = len(items.values) - 1 if items.cut else None  # the one that the token limit cut
        made = await asyncio.gather(
            *(self._instance(trail, (first, second), value, cut=n == last) for n, value in enumerate(instances))
        )
        records = [candidate.record for candidate in made if isinstance(candidate, Candidate)]
        return [
            Candidate(entry.record, records, entry.cut) if isinstance(entry, Candidate) else entry for entry in made
        ]

    async def _instance(
        self, trail: Trail, names: tuple[str, str], value: object, *, cut: bool
    ) -> Candidate | Rejection:
        """One instance as a candidate; with `turns` above 1, as the conversation that goes on from it."""
        texts = _texts(value, names, partial=cut)
        if texts is None:
            said = replace_surrogates(str(value)[:80])
            return self._rejection(trail, "record", "parse", f"no {names[0]} and {names[1]}: {said}")
        kind: Task = "classification" if names[0] == "label" else "generation"
        output, input_ = texts if kind == "classification" else texts[::-1]
        instruction = trail.task.instruction
        if self._turns == 1 or cut or not output:
            return Candidate(self._record(trail, kind, instruction, input_, output), cut=cut)
        turns: list[Turn] = [(f"{instruction}\n\n{input_}".strip(), output)]
        branch = trail.branch()
        while len(turns) < self._turns:
            values = {"conversation": _conversation(turns)}
            messages = self._prompts.chat("self_instruct_next_turn", values, self._examples.next_turn)
            schema = object_schema({"user": {"type": "string"}, "assistant": {"type": "string"}})
            reply = await self._asked(branch, "self_instruct_next_turn", self._manner.request(messages, schema))
            try:
                turns.append(_turn(reply))
            except Unreadable as error:
                branch.ask.counts.unreadable += 1
                return self._rejection(branch, "reply", "parse", f"turn {len(turns) + 1}: {error}", value=error.reason)
        user, assistant = turns.pop()
        return Candidate(self._record(branch, kind, user, "", assistant, turns))

    def _record(
        self, trail: Trail, kind: Task, instruction: str, input_: str, output: str, history: Sequence[Turn] = ()
    ) -> Record:
        return make_record(
            instruction=instruction,
            input=input_,
            output=output,
            history=history,
            task=kind,
            generator=GENERATOR,
            model=trail.ask.model.identity,
            language=self._language,
            source=trail.task.source,
            prompts=trail.prompts,
            requests=trail.requests,
        )

    async def _asked(self, trail: Trail, template: str, request: Request) -> Reply:
        """The reply to a request, which shows the examples and follows from the one before; both are noted."""
        shows = [*self._examples.shown, ("", trail.requests[-1])]
        trail.prompts |= self._prompts.hashes(template)
        trail.requests.append(trail.ask.key(request))
        return await trail.ask(request, shows=shows)

    def _rejection(
        self,
        trail: Trail,
        stage: Stage,
        filter_: str,
        reason: str,
        value: str | None = None,
    ) -> Rejection:
        return Rejection(
            stage=stage,
            filter=filter_,
            reason=reason,
            value=value,
            instruction=trail.task.instruction,
            generator=GENERATOR,
            model=trail.ask.model.identity,
            language=self._language,
            source=(trail.task.source,),
            prompts=trail.prompts,
            requests=tuple(trail.requests),
        )


@dataclass
class Trail:
    """What has led to a record so far: the task, the templates, the requests."""

    task: NewTask
    ask: Ask
    prompts: dict[str, str]
    requests: list[str]

    def branch(self) -> Trail:
        """A trail that goes on from here without touching this one."""
        return Trail(self.task, self.ask, dict(self.prompts), list(self.requests))


# ---------------------------------------------------------------- texts


def _names(is_classification: bool) -> tuple[str, str]:
    return ("label", "input") if is_classification else ("input", "output")


def _template(is_classification: bool) -> str:
    return "self_instruct_output_first" if is_classification else "self_instruct_input_first"


def _texts(value: object, names: tuple[str, str], *, partial: bool) -> tuple[str, str] | None:
    """The two texts of an instance; where the reply was cut off the second may be missing, and is empty."""
    if not isinstance(value, dict):
        return None
    first, second = (value.get(name, "" if partial else None) for name in names)
    if not isinstance(first, str) or not isinstance(second, str):
        return None
    return replace_surrogates(first).strip(), replace_surrogates(second).strip()


def _turn(reply: Reply) -> Turn:
    """What the user says next, and the assistant's answer; neither may be missing or blank."""
    turn = []
    for name in ("user", "assistant"):
        value = read_value(reply, name)
        if not isinstance(value, str) or not value.strip():
            raise Unreadable("wrong_shape", f"{name!r} is no text: {str(value)[:80]!r}")
        turn.append(replace_surrogates(value).strip())
    return turn[0], turn[1]


def _short_ones(tasks: list[SeedTask], random_: random.Random) -> list[SeedTask]:
    """The shorter half in random order: an example is to show the form, and every token of it is paid each time."""
    half = sorted(tasks, key=lambda task: sum(map(len, _written(task))))[: max(8, len(tasks) // 2)]
    return random_.sample(half, len(half))


def _written(task: SeedTask) -> Iterator[str]:
    yield task.instruction
    for instance in task.instances:
        yield from (instance.input, instance.output)


def _worked_out(task: SeedTask, names: tuple[str, str]) -> Example:
    """A seed as a question with the JSON that is asked for, fields in the order of `names`."""

    def fields(instance: Instance) -> dict[str, str]:
        texts = {"input": instance.input, "output": instance.output, "label": instance.output}
        return {name: texts[name] for name in names}

    answer = {"instances": [fields(instance) for instance in task.instances]}
    return {"instruction": task.instruction, "count": len(task.instances)}, _json(answer)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _conversation(turns: Sequence[Turn]) -> str:
    return "\n".join(f"User: {user}\nAssistant: {assistant}" for user, assistant in turns)
