"""What every command that asks a model shares: its budget, its templates, an orderly stop, and what it cost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pipeline.ask import Ask
from pipeline.errors import Interrupted
from pipeline.llm import Model
from pipeline.money import FREE, Budget, Limits, read_prices
from pipeline.prompts import Prompts
from pipeline.settings import AskingSettings

Result = TypeVar("Result")


def read_prompts(own: Path | None) -> dict[str, Prompts]:
    """The templates of every language there is."""
    return {language: Prompts(language, own) for language in ("en", "zh")}


def budget_of(settings: AskingSettings, model: Model, *others: Model) -> Budget:
    """The budget that `model` spends from; models in this process cost nothing."""
    prices = read_prices(settings.prices)
    for one in (model, *others):
        if one.is_local:
            prices[one.identity] = FREE
    limits = Limits(settings.max_cost, settings.max_total_tokens, settings.max_requests)
    return Budget(model.identity, prices, limits)


async def interruptible(work: Coroutine[Any, Any, Result], ask: Ask, say: Callable[[str], None]) -> Result:
    """Do the work; the first SIGINT, SIGTERM or SIGHUP drains what it asks, the second breaks off."""
    task = asyncio.ensure_future(work)
    interrupted = False

    def on_signal() -> None:
        nonlocal interrupted
        if interrupted:
            ask.abort()
            task.cancel()
            return
        interrupted = True
        in_flight = "nothing is in flight" if ask.model.is_local else "finishing what is in flight"
        say(f"\nStopping: {in_flight}, and everything that arrived is kept. Once more to stop at once.")
        ask.stop(Interrupted("Interrupted."))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted("Stopped at once.") from None


def usd(amount: float | None) -> str:
    return "cost unknown (no price in prices.toml)" if amount is None else f"{amount:.4f} USD"
