"""What a folder has spent and what it may spend: prices, limits, and a plan's estimate.

Whatever is not known counts at its worst: a request in flight, a reply without usage and a call that broke off cost
what they can cost at most (`journal.Used`). So a limit is never crossed, however the server answers, as long as it
keeps to `max_tokens`. A price that nobody wrote down is unknown, never 0.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.journal import Totals, Used
from pipeline.llm import Model, Request
from pipeline.text import estimate_tokens

DEFAULT_PRICES = Path("prices.toml")
MESSAGE_TOKENS = 4  # what a chat template adds to a message, about


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million tokens."""

    input: float
    output: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


FREE = Price(0.0, 0.0)


def usd(amount: float | None) -> str:
    return "cost unknown (no price in prices.toml)" if amount is None else f"{amount:.4f} USD"


def read_prices(path: Path, *models: Model) -> dict[str, Price]:
    """The prices by model of a file as prices.toml is (the default may be missing); local `models` are free.

    Raises UsageError for what is no price, so that a typing mistake is never a price of 0.
    """
    tables: dict[str, object] = {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path != DEFAULT_PRICES:
            raise UsageError(f"--prices {path}: there is no such file.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as prices ({error}).") from error
    prices = {}
    for model, table in tables.items():
        if not isinstance(table, dict) or set(table) != {"input", "output"} or not all(map(_is_price, table.values())):
            raise UsageError(
                f'{path}: ["{model}"] must hold `input` and `output`, USD for a million tokens, and nothing else.'
            )
        prices[model] = Price(**table)
    return prices | {model.identity: FREE for model in models if model.is_local}


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows a folder to spend in all; None: no limit. `names` are what the user knows them as."""

    cost: float | None = None
    total_tokens: int | None = None
    requests: int | None = None
    names: tuple[str, str, str] = ("--max-cost", "--max-total-tokens", "--max-requests")


@dataclass(slots=True)
class Spent:
    """What a folder has spent, by model; shared by the budgets of a run's models."""

    requests: int = 0
    used: dict[str, Used] = field(default_factory=dict)


class Budget:
    """Counts all that the folder ever paid, this run included, against the limits."""

    def __init__(self, model: str, prices: Mapping[str, Price], limits: Limits = Limits()) -> None:
        self._model, self._prices, self._limits = model, prices, limits
        self._spent = Spent()
        self.start(Totals())

    def beside(self, model: str) -> Budget:
        """The same budget, as another model of the run spends from it; start it before anything is sent."""
        other = Budget(model, self._prices, self._limits)
        other._spent = self._spent
        return other

    @property
    def requests(self) -> int:
        """Sent in all, earlier runs included."""
        return self._spent.requests

    @property
    def used(self) -> dict[str, Used]:
        """Tokens by model."""
        return self._spent.used

    @property
    def _now(self) -> Used:
        return self._spent.used.setdefault(self._model, Used())

    def start(self, totals: Totals) -> None:
        """Take in what was spent before. Raises UsageError where --max-cost cannot be watched over."""
        self._spent.requests = totals.attempts
        self._spent.used = {model: replace(used) for model, used in totals.used.items() if used.at_most}
        if self._limits.cost is not None:
            for model in {*self.used, self._model}:
                if model not in self._prices:
                    cost, *others = (name.partition(" =")[0] for name in self._limits.names)
                    raise UsageError(
                        f"{cost}: the price of {model!r} is unknown; write it into prices.toml,"
                        f" or limit the run by {' or '.join(others)}."
                    )

    def objection(self, most_tokens: tuple[int, int]) -> str | None:
        """Why a request of at most so many tokens (prompt, completion) may not be sent; None where it may."""
        limits = self._limits
        if limits.requests is not None and self.requests + 1 > limits.requests:
            return f"{limits.names[2]} {limits.requests} is reached ({self.requests} sent in all)."
        at_most = sum(used.at_most for used in self.used.values())
        if limits.total_tokens is not None and at_most + sum(most_tokens) > limits.total_tokens:
            return (
                f"{limits.names[1]} {limits.total_tokens} is reached: {at_most} are used,"
                f" and the next request may take {sum(most_tokens)}."
            )
        if limits.cost is not None:
            spent, next_one = self.cost_at_most or 0.0, self._prices[self._model].of(*most_tokens)
            if spent + next_one > limits.cost:
                return (
                    f"{limits.names[0]} {limits.cost:g} is reached: {spent:.6f} USD are spent,"
                    f" and the next request may cost {next_one:.6f}."
                )
        return None

    def exceeded_by(self, plan: Plan, price: float | None) -> list[str]:
        """The limits at which a run of this plan, at this price, would stop short, a sentence each."""
        limits = self._limits
        used = sum(used.at_most for used in self.used.values())
        over: list[str] = []
        if limits.requests is not None and (wanted := self.requests + plan.requests) > limits.requests:
            over.append(f"--max-requests {limits.requests} would stop it: {wanted} with those sent already.")
        wanted = used + plan.prompt_tokens + plan.completion_tokens
        if limits.total_tokens is not None and wanted > limits.total_tokens:
            over.append(f"--max-total-tokens {limits.total_tokens} would stop it: {wanted} with those used already.")
        if limits.cost is not None and price is not None and (cost := (self.cost_at_most or 0.0) + price) > limits.cost:
            over.append(f"--max-cost {limits.cost:g} would stop it: {cost:.4f} USD with those spent already.")
        return over

    def reserve(self, most_tokens: tuple[int, int]) -> None:
        """A request is about to be sent."""
        self._spent.requests += 1
        self._now.prompt_bound += most_tokens[0]
        self._now.completion_bound += most_tokens[1]

    def settle(self, most_tokens: tuple[int, int], tokens: tuple[int | None, int | None], *, paid: bool) -> None:
        """It ended; `tokens` (prompt, completion) are what the server said, None where it did not."""
        if not paid or tokens[0] is not None:
            self._now.prompt_bound -= most_tokens[0]
        if not paid or tokens[1] is not None:
            self._now.completion_bound -= most_tokens[1]
        self._now.prompt_tokens += tokens[0] or 0
        self._now.completion_tokens += tokens[1] or 0

    @property
    def cost(self) -> float | None:
        """USD by what servers said; None where a model's price is unknown."""
        return self._sum(lambda used: (used.prompt_tokens, used.completion_tokens))

    @property
    def cost_at_most(self) -> float | None:
        """The same, with what nobody said (calls in flight, too) at its worst."""
        return self._sum(
            lambda used: (used.prompt_tokens + used.prompt_bound, used.completion_tokens + used.completion_bound)
        )

    def cost_per(self, kept: int) -> float | None:
        """USD a kept record; None where the cost is unknown, or nothing was kept."""
        cost = self.cost
        return cost / kept if cost is not None and kept else None

    def price_of(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """USD for so many tokens of this run's model; None where its price is unknown."""
        price = self._prices.get(self._model)
        return None if price is None else price.of(prompt_tokens, completion_tokens)

    def _sum(self, tokens: Callable[[Used], tuple[int, int]]) -> float | None:
        total = 0.0
        for model, used in self.used.items():
            if not used.at_most:
                continue
            if model not in self._prices:
                return None
            total += self._prices[model].of(*tokens(used))
        return total


# ---------------------------------------------------------------- --plan


@dataclass(frozen=True, slots=True)
class Expected:
    """The records that a plan counts on, stored ones included, and about how many tokens the parts of one have."""

    records: float
    question: float
    answer: float
    source: float = 0.0  # what a judge is shown of its ground
    judged: int | None = None  # records that reach a judge, where that is known; else as many as there will be


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would still send, estimated; `assumes` says in a sentence what that rests on."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    assumes: str
    expected: Expected = Expected(0, 0, 0)

    def priced(self, price: float | None) -> str:
        """What would be sent, in words."""
        tokens = f"{self.prompt_tokens} tokens to read, {self.completion_tokens} to write"
        return f"about {self.requests} requests: {tokens}, {usd(price)}"

    def __add__(self, other: Plan) -> Plan:
        """Both; what is assumed and expected is this one's."""
        return replace(
            self,
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


def plan_of(requests: Iterable[tuple[Request, float]], assumes: str, times: float = 1.0) -> Plan:
    """A plan from requests with the tokens expected of their replies; `times` scales a sample up to all there are."""
    number = prompt = completion = 0.0
    for request, expected in requests:
        number += times
        prompt += times * prompt_tokens(request)
        completion += times * expected
    return Plan(round(number), round(prompt), round(completion), assumes)


def prompt_tokens(request: Request) -> float:
    """About how many tokens a request's messages have."""
    return sum(MESSAGE_TOKENS + estimate_tokens(content) for _, content in request.messages)
