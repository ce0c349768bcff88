"""Many at once, their results in order.

    async with aclosing(in_order(items, make, at_once=8)) as results:
        async for result in results: ...

Whoever breaks off, or is broken off, leaves no task behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_order(
    items: Iterable[Item], make: Callable[[Item], Coroutine[Any, Any, Result]], *, at_once: int
) -> AsyncGenerator[Result, None]:
    """`make` of each item, up to `at_once` under way; an error comes out where its result would have."""
    pending: deque[asyncio.Task[Result]] = deque()
    try:
        for item in items:
            pending.append(asyncio.ensure_future(make(item)))
            if len(pending) == at_once:
                yield await pending[0]
                pending.popleft()
        while pending:
            yield await pending[0]
            pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
