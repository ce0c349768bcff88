"""Self-Instruct: from seed tasks to instruction data (Wang et al. 2023).

    python -m pipeline.self_instruct --seeds seeds/175.jsonl --target 100
    python -m pipeline.self_instruct --seeds mine.jsonl --model gpt-4o-mini --target 5000
    python -m pipeline.self_instruct --seeds seeds/175_zh.jsonl --classification-only

The line, twice. First prompts of eight tasks (six seeds, two kept ones) bring new instructions; what the filters
keep joins the pool that later prompts draw from. Then each instruction, on its own, is identified as
classification or not and gets its instances: the label first, then an input for it; or the input, then its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import re
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import filters, instances
from pipeline.ask import Ask
from pipeline.cli import run_command
from pipeline.errors import StopRun, UsageError
from pipeline.filtering import Candidate, NewInstruction, apply_filters, chosen, first_objection
from pipeline.instances import Examples, InstanceWriter, NewTask
from pipeline.instruction_filters import INSTRUCTION
from pipeline.llm import Reply, Request, list_schema
from pipeline.money import Expected, Plan, plan_of
from pipeline.novelty import NoveltyIndex
from pipeline.parsing import Unreadable, read_items
from pipeline.prompts import Prompts
from pipeline.records import PromptSource, Record, Rejection, Stage, content_id
from pipeline.run import Made, Outlook
from pipeline.seed_tasks import SeedTask, fingerprint, load_seed_tasks
from pipeline.settings import GeneratorSettings, setting
from pipeline.text import estimate_tokens, language_of, one_line, replace_surrogates

MAX_TOKENS, MAX_TOKENS_BUNDLED = 1024, 320  # of a reply; the bundled model often finds no end
SHAPING_VERSION = 3  # of the code that builds prompts, reads instructions, and decides which join the pool
SEEDS_SHOWN, POOL_SHOWN = 6, 2  # tasks in an instruction prompt
NEW_OF_ASKED, KEPT_OF_ASKED, INSTANCE_TOKENS = 0.5, 0.5, 80  # what --plan assumes, and says
PLANNED_FROM = 20  # prompts, and tasks, that stand for all in --plan
BARREN_PROMPTS = 30  # prompts in a row without a new instruction, after which the chain ends


class SelfInstructSettings(GeneratorSettings):
    """The shared settings, and Self-Instruct's own."""

    out: Path = setting(Path("outputs/self_instruct"), "running", "the run folder", metavar="DIR")
    target: int | None = setting(100, "running", "kept records to end with", gt=0)
    seeds: Path = setting(Path("seeds/175.jsonl"), "running", "the seed tasks, one JSON object a line", metavar="FILE")
    classification_only: bool = setting(False, "shaping", "classification tasks alone, from classification seeds")
    turns: int = setting(1, "shaping", "user turns of a record; more than one makes `history`", gt=0, le=10)
    per_prompt: int = setting(8, "shaping", "new instructions asked for in a prompt", gt=0, le=30)
    per_task: int = setting(5, "shaping", "instances asked for of a task", gt=0, le=20)
    window: int = setting(8, "shaping", "how many prompts the pool may lag behind, at most", gt=0, le=256)


class SelfInstruct:
    """A `run.Generator` whose items are the instructions it keeps."""

    name = "self_instruct"
    at_its_end = f"{BARREN_PROMPTS} prompts in a row brought no new instruction"

    def __init__(self, settings: SelfInstructSettings, leave_out: Collection[str] = ()) -> None:
        """`leave_out` are ids of seed tasks that are not used."""
        seeds = [task for task in load_seed_tasks(settings.seeds) if task.id not in leave_out]
        if not seeds:
            raise UsageError(f"{settings.seeds}: no seed task is left.")
        if settings.classification_only:
            seeds = [task for task in seeds if task.is_classification]
            if not seeds:
                raise UsageError(f"{settings.seeds}: --classification-only, but no seed has is_classification true.")
        self._settings = settings
        self._manner = settings.manner(MAX_TOKENS, MAX_TOKENS_BUNDLED)
        self._seeds = {task.id: task for task in seeds}
        self._language: str = settings.language
        if settings.language == "auto":
            self._language = language_of("\n".join(task.instruction for task in seeds))
        self._prompts = Prompts(self._language, settings.prompts)
        self._template = "self_instruct_classification_tasks" if settings.classification_only else "self_instruct_tasks"
        self._writer = InstanceWriter(
            self._prompts,
            Examples(seeds, settings.seed),
            language=self._language,
            classification_only=settings.classification_only,
            turns=settings.turns,
            per_task=settings.per_task,
            room=settings.max_tokens or 0,
            manner=self._manner,
        )
        self._leave_out = leave_out
        self._stored, self._has_ended = 0, False  # records that stored replies make; whether they are all there will be
        self._brought_by: dict[str, str] = {}  # kept instruction -> the request whose reply held it first
        self._filters = chosen(INSTRUCTION, settings.filters)
        self._pool = Pool(seeds, next((float(f.threshold or 0) for f in self._filters if f.name == "novelty"), None))
        self.shaping: dict[str, Any] = {
            "seeds": fingerprint(seeds),
            "language": self._language,
            "max_tokens": self._manner.max_tokens,
            "templates": self._prompts.hashes(self._template, *instances.TEMPLATES),
            "pool_rules": {f.name: f.threshold for f in self._filters},
            "code": SHAPING_VERSION,
        }

    # ---------------------------------------------------------------- first line: prompts -> instructions

    async def items(self, ask: Ask, outlook: Outlook) -> AsyncGenerator[NewTask | Rejection, None]:
        """The kept instructions, prompt by prompt, with the rejected ones where they stood.

        A prompt draws from what the prompts before it brought, but for the last few: these are never waited for, and
        never used even where their replies are there. So the pool does not depend on concurrency.
        """
        under_way: deque[tuple[PromptSource, str, asyncio.Task[Reply]]] = deque()
        pool_sizes = [0]  # before prompt 0, after prompt 0, after prompt 1 …
        asked = barren = 0
        try:
            while barren < BARREN_PROMPTS:
                while self._seen_by(asked) < len(pool_sizes) and (
                    not under_way or len(under_way) * self._kept_a_prompt(len(pool_sizes) - 1) < outlook.wanted
                ):
                    source = self._draw(asked, self._pool.ids[: pool_sizes[self._seen_by(asked)]])
                    request = self._instruction_request(source)
                    # asked anew, it would change the pool
                    reply = asyncio.ensure_future(ask(request, retry=False, shows=self._shown_in(source)))
                    under_way.append((source, ask.key(request), reply))
                    asked += 1
                source, key, reply = under_way[0]
                for entry in self._read_instructions(await reply, source, key, ask):
                    yield entry
                under_way.popleft()
                pool_sizes.append(len(self._pool.ids))
                barren = 0 if pool_sizes[-1] > pool_sizes[-2] else barren + 1
        finally:
            for _, _, reply in under_way:
                reply.cancel()
            await asyncio.gather(*(reply for _, _, reply in under_way), return_exceptions=True)

    def _seen_by(self, number: int) -> int:
        """How many of the prompts before it a prompt may draw from; at first few are left out: small runs draw, too."""
        return number + 1 - min(self._settings.window, 1 + number // 2)

    def _kept_a_prompt(self, folded: int) -> float:
        """New instructions to expect of a prompt; before there is any experience, half of what is asked for."""
        return max(1.0, len(self._pool.ids) / folded) if folded else self._settings.per_prompt / 2

    def _draw(self, number: int, pool: Sequence[str]) -> PromptSource:
        """What the prompt of this number shows: six seeds and two of the pool, or eight seeds while it is empty."""
        random_ = random.Random(f"{self._settings.seed}:{number}")
        kept = random_.sample(pool, min(POOL_SHOWN, len(pool)))
        wanted = SEEDS_SHOWN + POOL_SHOWN - len(kept)
        seeds = random_.sample(list(self._seeds), min(wanted, len(self._seeds)))
        return PromptSource(prompt=number, seeds=tuple(seeds), pool=tuple(kept))

    @property
    def live(self) -> set[str]:
        """An id for each seed, of all that the prompts can see of it."""
        return {fingerprint([task]) for task in self._seeds.values()}

    def _shown_in(self, source: PromptSource) -> list[tuple[str, str]]:
        """What an instruction prompt shows: seeds, and, by the requests that brought them, kept instructions."""
        seeds = [fingerprint([self._seeds[id_]]) for id_ in source.seeds]
        return [("", id_) for id_ in (*seeds, *(self._brought_by[id_] for id_ in source.pool))]

    def _instruction_request(self, source: PromptSource) -> Request:
        shown = [self._seeds[id_].instruction for id_ in source.seeds] + [self._pool.texts[id_] for id_ in source.pool]
        random.Random(f"{self._settings.seed}:{source.prompt}:order").shuffle(shown)
        count = self._settings.per_prompt
        answer = json.dumps({"instructions": [one_line(text) for text in shown]}, ensure_ascii=False)
        messages = self._prompts.chat(self._template, {"count": count}, [({"count": len(shown)}, answer)])
        schema = list_schema("instructions", {"type": "string"}, count)
        return self._manner.request(messages, schema, sample=source.prompt or 0)

    def _read_instructions(
        self, reply: Reply, source: PromptSource, key: str, ask: Ask
    ) -> Iterator[NewTask | Rejection]:
        """A reply's instructions, judged one after the other; what is kept is in the pool for the next one."""
        prompts = self._prompts.hashes(self._template)

        def rejection(filter_: str, reason: str, stage: Stage = "instruction", **more: Any) -> Rejection:
            return Rejection(
                stage=stage, filter=filter_, reason=reason, generator=self.name, model=ask.model.identity,
                language=self._language, source=(source,), prompts=prompts, requests=(key,), **more,
            )  # fmt: skip

        try:
            items = read_items(reply, "instructions")
            if not items.values:
                raise Unreadable("no_instructions", "the list of instructions is empty")
        except Unreadable as unreadable:
            ask.counts.unreadable += 1
            yield rejection("parse", unreadable.detail, "reply", value=unreadable.reason)
            return
        for number, value in enumerate(items.values, 1):
            if items.cut and number == len(items.values):
                yield rejection("cut_off", "cut off by the token limit", instruction=replace_surrogates(str(value)))
                continue
            if not isinstance(value, str):
                yield rejection("parse", f"no text: {str(value)[:80]}")
                continue
            instruction = clean_instruction(value)
            seen = NewInstruction(instruction, self._pool.index, self._pool.texts)
            objection = first_objection(self._filters, seen)
            if objection is not None:
                filter_, found = objection
                yield rejection(
                    filter_.name, found.reason, value=found.value, threshold=filter_.threshold,
                    neighbour=found.neighbour, instruction=instruction,
                )  # fmt: skip
                continue
            id_ = self._pool.add(instruction)
            self._brought_by.setdefault(id_, key)
            yield NewTask(id_, instruction, source, key, prompts)

    # ---------------------------------------------------------------- second line: instruction -> instances

    async def make(self, item: NewTask, ask: Ask) -> Made:
        return await self._writer.write(item, ask)

    # ---------------------------------------------------------------- --plan

    async def recall(self, ask: Ask) -> None:
        """How many records what is stored makes, so that a plan knows what is missing: the chain, without sending."""
        settings = self._settings
        chain, seen = SelfInstruct(settings, self._leave_out), set[str]()
        own = settings.own_filters.filters if settings.own_filters is not None else ()
        kept_by = filters.of_records(settings.filters, own)
        with contextlib.suppress(StopRun):
            async with contextlib.aclosing(chain.items(ask, Outlook(settings.target))) as items:
                async for item in items:
                    for made in await chain.make(item, ask) if isinstance(item, NewTask) else ():
                        judged = apply_filters(kept_by, made) if isinstance(made, Candidate) else None
                        if isinstance(judged, Record):
                            seen.add(judged.id)
                    self._stored = len(seen)
                    if settings.target is not None and len(seen) >= settings.target:
                        return
                self._has_ended = True

    def plan(self, target: int | None, stored: Callable[[Request], bool]) -> Plan:
        """What the target takes beyond what is stored, by the yields below, for nobody knows a chain's next prompt."""
        settings, wanted = self._settings, 0 if self._has_ended else max(0, (target or 0) - self._stored)
        per_prompt, per_task = settings.per_prompt * NEW_OF_ASKED, settings.per_task * KEPT_OF_ASKED
        tasks = math.ceil(wanted / per_task)
        prompts = math.ceil(tasks / per_prompt)
        texts = [task.instruction for task in self._seeds.values()]
        expected = min(self._manner.max_tokens, settings.per_prompt * sum(map(estimate_tokens, texts)) / len(texts))
        first = [self._instruction_request(self._draw(number, ())) for number in range(min(prompts, PLANNED_FROM))]
        sample = list(self._seeds.values())[:PLANNED_FROM]
        writing = min(self._manner.max_tokens, settings.per_task * INSTANCE_TOKENS)
        second: list[tuple[Request, float]] = []
        for task in sample:
            second.append((self._writer.identify_request(task.instruction), 8))
            second += [(self._writer.instances_request(task.instruction, task.is_classification), writing)]
        chain = plan_of(((request, expected) for request in first), "", prompts / max(1, len(first)))
        rest = plan_of(second, "", tasks / len(sample))
        question = sum(map(estimate_tokens, texts)) / len(texts)
        assumes = (
            f"a prompt brings {per_prompt:g} new instructions of {settings.per_prompt} asked for, an instruction"
            f" {per_task:g} kept records of {settings.per_task} asked for, in about {INSTANCE_TOKENS} tokens each;"
            f" the real yield depends on the model. {self._stored} records come of what is stored."
            + " There the chain has ended: it would ask nothing more."
            * self._has_ended
        )
        both = chain + rest
        records = min(self._stored + wanted, target or math.inf)  # what was in flight at the end is stored, too
        expected_records = Expected(records, question + INSTANCE_TOKENS / 2, INSTANCE_TOKENS / 2)
        return replace(both, assumes=assumes, expected=expected_records)


class Pool:
    """The instructions kept so far: what later prompts draw from, and what novelty is measured against.

    Seeds count for novelty too, but are drawn by themselves; `ids` holds the kept ones alone, in their order.
    """

    def __init__(self, seeds: Sequence[SeedTask], threshold: float | None) -> None:
        self.index = NoveltyIndex(0.7 if threshold is None else threshold)
        self.texts: dict[str, str] = {}
        self.ids: list[str] = []
        for task in seeds:
            self.index.add(task.instruction, task.id)
            self.texts[task.id] = task.instruction

    def add(self, instruction: str) -> str:
        """Take an instruction in; returns its id."""
        id_ = content_id("instruction", instruction)
        if id_ not in self.texts:  # with novelty off, an instruction may come again
            self.index.add(instruction, id_)
            self.texts[id_] = instruction
            self.ids.append(id_)
        return id_


_NUMBERING = re.compile(r"^\s*(?:(?:task\s*)?\d{1,3}\s?[.):、]|[-*•])\s+", re.IGNORECASE)


def clean_instruction(text: str) -> str:
    """The text on one line, without the number or bullet a model may have put before it; case is left alone."""
    return one_line(_NUMBERING.sub("", replace_surrogates(text)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        SelfInstructSettings, argv, command="pipeline.self_instruct", about=__doc__ or "", prepare=SelfInstruct
    )


if __name__ == "__main__":
    sys.exit(main())
