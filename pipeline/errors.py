"""Every way a run can stop, and the exit code each one has.

    StopRun                      the run ends early; what was paid for is kept
    ├── UsageError               2   bad usage or bad input: nothing was written
    │   └── BrokenFilter         2   a filter of the user's own failed: the files stay as they were
    ├── Offline                  3   --offline, and something is not stored yet
    ├── BudgetReached            4   a limit of the user's was reached
    ├── EndpointError            5   endpoint down, or the key or the model refused
    ├── StorageError             6   the disk is full or cannot be written
    ├── FolderBusy              75   another process holds the run folder
    └── Interrupted            130   SIGINT or SIGTERM

A failure of a single request is no error: it is a journalled outcome (`llm.Reply`).
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator

DONE = 0
SHORT = 3  # finished, but short of the target, with isolated failures, or with nothing kept
REFUSED = 7  # a project's gate did not let a new version become the latest


class StopRun(Exception):
    """Ends the run. The message is one sentence for the user; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(StopRun):
    exit_code = 2


class BrokenFilter(UsageError):
    pass


class BudgetReached(StopRun):
    exit_code = 4


class EndpointError(StopRun):
    exit_code = 5


class StorageError(StopRun):
    exit_code = 6


class FolderBusy(StopRun):
    exit_code = 75


class Interrupted(StopRun):
    exit_code = 130


class Offline(StopRun):
    exit_code = SHORT


# What a disk says that is full, whose quota is used up, that takes no larger file, or that is about to die.
_FAILING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_FAILING_SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}


@contextlib.contextmanager
def storage_failures() -> Iterator[None]:
    """Around a whole command: a disk that fails is a StorageError, whatever was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FAILING:
            raise
        raise StorageError(f"{error.filename or 'The disk'}: cannot be written ({error.strerror}).") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _FAILING_SQLITE:  # its low byte; above it are details
            raise
        raise StorageError(f"The disk: cannot be written ({error}).") from error
