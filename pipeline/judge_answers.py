"""Which of two answers is better, by a judge that is asked in both orders, so that no place wins anything.

Only what it says in both orders counts; where they disagree it is a tie, and how often they agree is reported, for a
judge that follows the order knows nothing. Two answers alike are a tie that nobody is asked about. Its calls go
through `ask` like all others: journalled (judge.sqlite), limited, and answered from the journal the second time.
The rubric is prompts/*/pair_judge.md, the one that preference pairs are made by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.ask import Ask
from pipeline.errors import StopRun
from pipeline.journal import Journal
from pipeline.judge import BETTER, VERDICT_TOKENS, comparison_request
from pipeline.llm import Model, Reply, Request
from pipeline.models import open_model
from pipeline.money import DEFAULT_PRICES, Budget, Limits, read_prices
from pipeline.parsing import Unreadable, read_value
from pipeline.prompts import Prompts, read_prompts
from pipeline.run_folder import locked
from pipeline.settings import GeneratorSettings

CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """A request and two answers to it; `language` says in which one the judge is asked."""

    question: str
    first: str
    second: str
    language: str

    @property
    def turned(self) -> Pair:
        return Pair(self.question, self.second, self.first, self.language)

    @property
    def is_alike(self) -> bool:
        """Whether both answers say the same: a tie that nobody is asked about."""
        return self.first.strip() == self.second.strip()


@dataclass(frozen=True, slots=True)
class Opinions:
    """What the judge said in the pair's own order and in the other one, both told of the pair as it stands.

    None stands for a reply that could not be read, or that was not asked for any more.
    """

    straight: str | None
    turned: str | None

    @property
    def is_known(self) -> bool:
        return self.straight is not None and self.turned is not None

    @property
    def agree(self) -> bool:
        return self.straight == self.turned

    @property
    def winner(self) -> str:
        """What counts: "first" or "second" where both orders say so, else "tie"."""
        return self.straight if self.straight is not None and self.agree else "tie"


@dataclass(frozen=True, slots=True)
class Judge:
    """Which model judges, and what it may cost; None: no limit."""

    model: str
    base_url: str | None
    api_key_env: str
    max_requests: int | None
    max_cost: float | None
    max_tokens: int = VERDICT_TOKENS  # of a verdict

    def open(self) -> tuple[Model, Budget]:
        """The model and its budget; nothing is loaded or sent yet.

        :raises UsageError: where its key or its price is not known.
        """
        model = open_model(GeneratorSettings(model=self.model, base_url=self.base_url, api_key_env=self.api_key_env))
        limits = Limits(cost=self.max_cost, requests=self.max_requests)
        return model, Budget(model.identity, read_prices(DEFAULT_PRICES, model), limits)


def ask_judge(judge: Judge, pairs: Sequence[Pair], folder: Path) -> tuple[list[Opinions], StopRun | None]:
    """Opinions on all pairs, as far as the limits allow, and why it stopped early, if it did."""
    return asyncio.run(_ask_judge(judge, pairs, folder))


async def _ask_judge(judge: Judge, pairs: Sequence[Pair], folder: Path) -> tuple[list[Opinions], StopRun | None]:
    model, budget = judge.open()
    with locked(folder), Journal(folder / "judge.sqlite") as journal:
        ask = Ask(model, journal, concurrency=CONCURRENCY, budget=budget)
        try:
            await ask.start()
            return await opinions(pairs, ask, read_prompts(), judge.max_tokens), ask.stopped
        finally:
            await ask.drain()
            await model.close()


async def opinions(
    pairs: Sequence[Pair],
    ask: Callable[[Request], Awaitable[Reply]],
    prompts: Mapping[str, Prompts],
    max_tokens: int = VERDICT_TOKENS,
) -> list[Opinions]:
    """What `ask` says of every pair, in their order; `max_tokens` for each verdict."""

    async def both(pair: Pair) -> Opinions:
        if pair.is_alike:
            return Opinions("tie", "tie")
        straight, turned = await asyncio.gather(
            *(_choice(ask, request(one, prompts[one.language], max_tokens)) for one in (pair, pair.turned))
        )
        back = {"first": "second", "second": "first", "tie": "tie", None: None}
        return Opinions(straight, back[turned])

    return list(await asyncio.gather(*map(both, pairs)))


async def _choice(ask: Callable[[Request], Awaitable[Reply]], request_: Request) -> str | None:
    try:
        said = read_value(await ask(request_), "better")
    except (Unreadable, StopRun):  # `ask` keeps why it stopped
        return None
    return said if said in BETTER else None


def request(pair: Pair, prompts: Prompts, max_tokens: int = VERDICT_TOKENS) -> Request:
    """The request that compares a pair as it stands, at temperature 0. The answers are marked off as data."""
    shown = {"source": "-", "history": "-", "instruction": pair.question, "input": "-"}
    return comparison_request(shown, (pair.first, pair.second), prompts, {}, max_tokens)
