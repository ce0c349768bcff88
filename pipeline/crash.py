"""Marked points before and after every durable step, at which a test can kill this process; otherwise they do nothing.

    INSTRUCTLOOP_CRASH_AT=reply.stored:3 python -m pipeline.self_instruct …      dies at the third passing of that point

`kill -9` sent from outside hits a random instant; this hits every instant that matters, one after the other
(tests/test_kill.py). The environment variable is read here and nowhere else.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "INSTRUCTLOOP_CRASH_AT"
POINTS = (
    "folder.locked",
    "journal.create",  # before the tables of a new journal are committed
    "journal.migrate",  # before a layout's migration is committed
    "journal.open",  # after both
    "commit.before",  # of any group of writes
    "commit.after",
    "attempt.begun",  # written down, not yet sent
    "reply.arrived",  # paid for, not yet stored
    "reply.stored",
    "file.written",  # aside, on the disk, not yet renamed
    "file.renamed",
)
TICK_POINTS = (  # of pipeline.schedule, which runs another process
    "tick.claimed",  # and not begun
    "tick.started",  # its run goes on without us
    "tick.ran",  # how it ended is not written down
    "tick.ended",  # nobody has been told
    "tick.told",  # that is not written down
    "tick.settled",
)
PROJECT_POINTS = (  # of pipeline.regenerate alone
    "source.done",
    "version.written",
    "version.renamed",
    "latest.moved",
    "version.hidden",  # out of sight, not yet off the disk
    "revocation.noted",
    "purge.before",  # of what is taken out of the journal
    "purge.committed",
    "purge.after",
)

_passed: Counter[str] = Counter()
_wanted: tuple[str, int] | None = None
_read = False


def point(name: str) -> None:
    """Die here, if this is the passing that the environment names."""
    global _wanted, _read
    if not _read:
        at, _, number = os.environ.get(VARIABLE, "").partition(":")
        _wanted, _read = ((at, int(number or 1)) if at else None), True
    if _wanted is None:
        return
    _passed[name] += 1
    if (name, _passed[name]) == _wanted:
        os.kill(os.getpid(), signal.SIGKILL)
