"""Packages that only some commands take: named, with the command that installs them, before anything is asked."""

from __future__ import annotations

import importlib.util

from pipeline.errors import UsageError

INSTALL = "pip install -c constraints.txt -e '.[{}]'"


def need(extra: str, what: str, *modules: str) -> None:
    """Check that an extra's modules can be imported; none is.

    :raises UsageError: says `what` takes which of them, and how to install the extra.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{what} takes {', '.join(missing)}: {INSTALL.format(extra)}")
