"""Filters of the user's own, from a Python file that --own-filters names.

    def too_loud(record, above: float = 0.3):
        \"\"\"An answer that shouts.\"\"\"
        capitals = sum(letter.isupper() for letter in record.output) / max(1, len(record.output))
        return f"{capitals:.0%} capitals, above {above:.0%}" if capitals > above else None

Every public function that the file defines is a filter, named as it is, in the order of the file. It is given a
`pipeline.records.Record` and returns None to keep it, or in a text why not. A second parameter with a number as its
default is its threshold. --filters switches and sets these as any other; config.json holds the file's hash. The
function must depend on the record alone: a run is derived anew whenever the command is run again.
"""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import BrokenFilter
from pipeline.filtering import Candidate, Filter, Found
from pipeline.filters import ALL


@dataclass(frozen=True)
class OwnFilters:
    """A file of filters; two are equal if path and content are."""

    path: Path
    sha256: str
    filters: tuple[Filter[Candidate], ...] = field(compare=False)

    def as_json(self) -> dict[str, str]:
        """How config.json names it."""
        return {"path": str(self.path), "sha256": self.sha256}


def load(path: Path) -> OwnFilters:
    """Run the file and take its functions. Raises ValueError with one sentence for whatever is wrong with it."""
    try:
        code = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        module = types.ModuleType(str(path))
        exec(compile(code, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way, and it is for the user to mend
        raise ValueError(f"{path}: fails when it is run: {_said(error, path)}") from error
    made = [
        _filter(path, name, value)
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value.__module__ == str(path) and not name.startswith("_")
    ]
    if not made:
        raise ValueError(f"{path}: defines no function; a filter is def name(record), None to keep it, or why not")
    return OwnFilters(path, hashlib.sha256(code).hexdigest(), tuple(made))


def _filter(path: Path, name: str, function: Callable[..., Any]) -> Filter[Candidate]:
    """A function of the file as a filter. Raises ValueError where it cannot be one."""
    if name in ALL:
        raise ValueError(f"{path}: there is a filter {name!r} already; give the function another name")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ValueError(f"{path}: {name} must be a plain function, neither async nor with yield")
    given = list(inspect.signature(function).parameters.values())
    by_place = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    threshold = by_place[1].default if len(by_place) == 2 else None
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not by_place or len(by_place) < len(given) or len(by_place) > 2 or (len(by_place) == 2 and not number):
        raise ValueError(
            f"{path}: {name} takes a record, and a number as its threshold if it needs one: {name}(record)"
        )
    way_out = f"Mend it, or --filters {name}=off; all that was paid for is kept, and the records stay as they were."

    def check(candidate: Candidate, setting: Any) -> Found | None:
        record = candidate.record
        try:
            said = function(record) if len(by_place) == 1 else function(record, setting)
        except (Exception, SystemExit) as error:  # likewise: anything may come of code that is not ours
            raise BrokenFilter(
                f"{path}: {name} failed on the record {record.id}: {_said(error, path)}. {way_out}"
            ) from error
        if said is None:
            return None
        if not isinstance(said, str) or not said.strip():
            raise BrokenFilter(
                f"{path}: {name} returned {said!r} for the record {record.id}; None keeps it, a text says why not."
                f" {way_out}"
            )
        return Found(" ".join(said.split()))

    return Filter(name, check, threshold, path.name)


def _said(error: BaseException, path: Path) -> str:
    """What went wrong, and in which line of the file."""
    lines = []
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == str(path):
            lines.append(place.tb_lineno)
        place = place.tb_next
    said = str(error)
    if isinstance(error, SyntaxError) and error.lineno:
        said, lines = error.msg, [error.lineno]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(said.split())}{where}"
