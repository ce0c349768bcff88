"""An orderly stop: the first signal lets what is in flight arrive, the second breaks it off."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pipeline.ask import Ask
from pipeline.errors import Interrupted

Result = TypeVar("Result")


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
