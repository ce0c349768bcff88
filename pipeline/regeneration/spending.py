"""What a tick may spend: [budget]'s limits for the tick and for the calendar month, as one run's limits.

A tick ends when the command does; one that was killed goes on with what it had left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StorageError, UsageError
from pipeline.journal import Journal, Totals
from pipeline.money import FREE, Budget, Limits, Price, read_prices
from pipeline.regeneration.project import BudgetTable
from pipeline.regeneration.sources import Prepared
from pipeline.run_folder import write_json

_LOCAL = re.compile(r"local-[0-9a-f]{32}")
TICK = "tick.json"  # there while a tick is under way: the attempt after which it began


@dataclass(frozen=True, slots=True)
class Spending:
    """The tick's limits, and the prices of all its models."""

    after: int  # the latest attempt before the tick
    limits: Limits
    prices: Mapping[str, Price]

    async def spent(self, journal: Journal) -> Totals:
        """What the tick has spent so far."""
        return await journal.totals(after=self.after)

    def cost(self, totals: Totals) -> float | None:
        """USD; None where a price is unknown."""
        return _budget(self.prices, totals).cost


async def begin(out: Path, table: BudgetTable, journal: Journal, sources: Sequence[Prepared]) -> Spending:
    """Begin a tick, or take up one that was killed."""
    path = out / TICK
    after = _began_after(path) if path.exists() else await journal.latest()
    write_json(path, {"after": after})
    prices: dict[str, Price] = {}
    for source in sources:
        prices |= read_prices(source.source.settings.prices, source.model)
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    before = await journal.totals(since=month)
    own = await journal.totals(after=after, since=month)
    return Spending(after, _limits(table, prices, before, own), prices)


def _began_after(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["after"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path}: is damaged ({error}), so what a killed tick had spent is not known; the next one counts anew."
        ) from error


def end(out: Path) -> None:
    """The tick is over, however it ended."""
    (out / TICK).unlink(missing_ok=True)


def _limits(table: BudgetTable, prices: Mapping[str, Price], month: Totals, own: Totals) -> Limits:
    """The tighter of the tick's limit and what the month leaves; `month` holds `own`, what the tick spent in it."""
    used = _at_most(month) - _at_most(own)
    sent = month.attempts - own.attempts
    spent = 0.0
    if table.max_cost_per_month is not None:
        whole, part = _budget(prices, month).cost_at_most, _budget(prices, own).cost_at_most
        if whole is None or part is None:
            raise UsageError(
                "[budget] max_cost_per_month: a model was asked this month whose price is not in prices.toml."
            )
        spent = whole - part
    pairs = (
        ("max_cost", table.max_cost_per_tick, table.max_cost_per_month, spent),
        ("max_total_tokens", table.max_total_tokens_per_tick, table.max_total_tokens_per_month, used),
        ("max_requests", table.max_requests_per_tick, table.max_requests_per_month, sent),
    )
    found: list[float | None] = []
    names: list[str] = []
    for name, tick, monthly, gone in pairs:
        left = None if monthly is None else max(0, monthly - gone)
        if left is not None and (tick is None or left < tick):
            found.append(left)
            names.append(f"[budget] {name}_per_month = {monthly:g}: what it leaves to this tick,")
        else:
            found.append(tick)
            names.append(f"[budget] {name}_per_tick")
    cost, tokens, requests = found
    return Limits(
        cost,
        None if tokens is None else int(tokens),
        None if requests is None else int(requests),
        (names[0], names[1], names[2]),
    )


def _at_most(totals: Totals) -> int:
    return sum(used.at_most for used in totals.used.values())


def _budget(prices: Mapping[str, Price], totals: Totals) -> Budget:
    local = {model: FREE for model in totals.used if _LOCAL.fullmatch(model)}  # an earlier adapter, too
    budget = Budget("", {**local, **prices})
    budget.start(totals)
    return budget
