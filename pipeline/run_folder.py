"""The run folder: its lock, its config.json, and the derived files, which a reader never sees half-written.

config.json      resolved settings and versions; never a key
journal.sqlite   every request and reply (journal.py)
records.jsonl    what was kept        } published together: the old set
rejected.jsonl   what was not, why    } or the new one, never a mix
preferences.jsonl  pairs of answers, with --pairs
summary.json     counts, tokens, seconds, and the size and SHA-256 of the other two

No file system renames three files at once. So all three are written aside first, and the renaming of summary.json is
the moment that counts: it names the contents that belong to it, each of which is still aside or has taken its place.
`open_set` finds them in either, at whatever moment it comes, and wherever a run was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline import crash
from pipeline.errors import FolderBusy, StorageError, UsageError
from pipeline.records import Preference, Record, Rejection, Source

SET = ("records.jsonl", "rejected.jsonl")  # published together with summary.json
PREFERENCES = "preferences.jsonl"  # published along with them, with --pairs
PROJECT = "pipeline.regenerate"
EDITED_AFTER = 5  # looks at one summary; a rename between two of them explains no more than two


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a run folder, creating it. Raises FolderBusy naming the holder; a killed holder leaves no lock behind.

    The lock's file descriptor: a process that inherits it holds the folder, too, as long as it lives.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+", encoding="utf-8")
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: a file stands there, or above it; a run needs a folder.") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}).") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise FolderBusy(f"{folder}: in use by {lock.read().strip() or 'another process'}.") from error
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        lock.flush()
        crash.point("folder.locked")
        yield lock.fileno()


def read_config(folder: Path) -> dict[str, Any] | None:
    """The folder's config.json; None where there is none yet."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{folder / 'config.json'}: cannot be read ({error}).") from error
    except ValueError as error:
        raise UsageError(f"{folder / 'config.json'}: is not JSON ({error}); use another --out.") from error
    if not isinstance(config, dict) or not isinstance(config.get("shaping"), dict):
        raise UsageError(f"{folder / 'config.json'}: is not of a run of instructloop; use another --out.")
    return config


def is_project(folder: Path) -> bool:
    """Whether it is the root of a project of pipeline.regenerate, which has no config.json of its own."""
    return (folder / "versions").is_dir() and (folder / "journal.sqlite").exists()


def check_maker(folder: Path, maker: str, way_out: str = "use another --out") -> dict[str, Any] | None:
    """The folder's config.json, if any. Raises UsageError where another command than `maker` keeps replies there."""
    if is_project(folder) and maker != PROJECT:
        raise UsageError(f"{folder} is a project of {PROJECT}; {way_out}.")
    config = read_config(folder)
    if config is not None and config.get("generator") != maker:
        made = f"{folder} was made by {config.get('generator')}; {way_out}."
        raise UsageError(_mixed(folder, str(config.get("generator"))) if is_project(folder) else made)
    return config


def _mixed(folder: Path, generator: str) -> str:
    """What to do with a folder from when the two were not kept apart: the run's files go, its replies stay."""
    there = [name for name in ("config.json", *SET, PREFERENCES, "summary.json") if (folder / name).exists()]
    aside = folder.with_name(f"{folder.name}-{generator}")
    move = shlex.join(["mv", *(str(folder / name) for name in there), f"{aside}/"])
    return (
        f"{folder} holds a project and also a run of {generator}, from when the two were not kept apart: --gc would"
        f" delete the run's replies from the journal that they share. Move the run's files away, and the project goes"
        f" on: mkdir {shlex.quote(str(aside))} && {move}"
    )


def write_json(path: Path, value: object) -> None:
    """A JSON file, written aside and renamed; what of an odd path no UTF-8 holds stands there as JSON's \\udce9."""
    with _storage_errors(path):
        with _aside_of(path).open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(value, file, ensure_ascii=False, indent=2)
            file.write("\n")
            _sync(file)
        crash.point("file.written")
    _take_place(path)


class DerivedFiles:
    """The records and rejections of one run, in item order, built aside and published whole.

    Memory stays flat: what was kept waits in a file, and only the sources of merged duplicates in a dict.
    """

    def __init__(self, folder: Path, *, preferences: bool = False) -> None:
        """With `preferences` there is one file more, preferences.jsonl; without, one from before is taken away."""
        self._folder = folder
        self._names = ("records", "rejected", *(["preferences"] if preferences else []))
        self._merged: dict[str, list[Source]] = {}
        self._parts: dict[str, IO[str]] = {}
        self._broken: StorageError | None = None  # a line is missing: nothing is published any more

    def __enter__(self) -> DerivedFiles:
        _finish(self._folder)
        for name in self._names:
            with _storage_errors(self._folder):
                self._parts[name] = self._part(name).open("w", encoding="utf-8", buffering=2**18)
        return self

    def __exit__(self, *_: object) -> None:
        for name, part in self._parts.items():
            with contextlib.suppress(OSError):  # a full disk has been reported by now
                part.close()
            self._part(name).unlink(missing_ok=True)

    def keep(self, record: Record) -> None:
        self._write("records", record.model_dump_json())

    def reject(self, rejection: Rejection) -> None:
        self._write("rejected", rejection.model_dump_json())

    def prefer(self, preference: Preference) -> None:
        self._write("preferences", preference.model_dump_json())

    def merge(self, id_: str, source: Source) -> None:
        """Add a source to a record or rejection written before, of which an exact duplicate came."""
        self._merged.setdefault(id_, []).append(source)

    def publish(self, summary: dict[str, Any]) -> None:
        """Bring records.jsonl, rejected.jsonl and summary.json up to date, all at once."""
        if self._broken is not None:
            raise self._broken
        contents = {}
        for name, part in self._parts.items():
            path = self._folder / f"{name}.jsonl"
            with _storage_errors(path):
                part.flush()
                contents[path.name] = self._write_aside(name, path)
        write_json(self._folder / "summary.json", summary | {"files": contents})  # from here on the new set holds
        for name in contents:
            _take_place(self._folder / name)
        if PREFERENCES not in contents:
            (self._folder / PREFERENCES).unlink(missing_ok=True)

    def _write_aside(self, name: str, path: Path) -> dict[str, Any]:
        """Write a part's lines aside; what summary.json is to say of them."""
        digest, size = hashlib.sha256(), 0
        with self._part(name).open("rb") as lines, _aside_of(path).open("wb") as file:
            for line in map(self._with_sources, lines):
                file.write(line)
                digest.update(line)
                size += len(line)
            _sync(file)
        crash.point("file.written")
        return {"bytes": size, "sha256": digest.hexdigest()}

    def _write(self, name: str, line: str) -> None:
        try:
            with _storage_errors(self._folder):
                self._parts[name].write(line + "\n")
        except StorageError as error:
            self._broken = error
            raise

    def _with_sources(self, line: bytes) -> bytes:
        if not self._merged:
            return line
        fields = json.loads(line)
        more = self._merged.get(fields["id"])
        if not more:
            return line
        fields["source"] += [source.model_dump(mode="json") for source in more]
        return (json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    def _part(self, name: str) -> Path:
        return self._folder / f".{name}.part"


# ---------------------------------------------------------------- reading what was published


Entry = TypeVar("Entry", Record, Rejection)


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """The derived files as they were published together: the summary, and the others, open, where they are there."""

    summary: dict[str, Any]
    files: dict[str, BufferedReader]

    def records(self) -> Iterator[Record]:
        return self._read("records.jsonl", Record)

    def rejections(self) -> Iterator[Rejection]:
        return self._read("rejected.jsonl", Rejection)

    def _read(self, name: str, kind: type[Entry]) -> Iterator[Entry]:
        """Raises UsageError for a line that was damaged, or edited by hand."""
        file = self.files.get(name)
        for number, line in enumerate(file or (), 1):
            try:
                yield kind.model_validate_json(line)
            except ValueError as error:
                path = getattr(file, "name", name)
                raise UsageError(f"{path}, line {number}: is no {kind.__name__.lower()} any more; edited?") from error


@contextlib.contextmanager
def open_set(folder: Path) -> Iterator[PublishedSet]:
    """The derived files of one moment, whatever is being published meanwhile.

    A file that is none of those the summary names, look after look, was edited by hand, and is taken as it is.
    """
    with contextlib.ExitStack() as stack:
        summary: dict[str, Any] = {}
        looks = 0
        while looks < EDITED_AFTER:
            before, summary = summary, read_summary(folder)
            looks = looks + 1 if summary == before else 1
            with contextlib.ExitStack() as look:
                found = {name: _find(folder / name, summary, look) for name in SET}
                if None not in found.values():
                    stack.enter_context(look.pop_all())
                    break
        else:
            found = {name: stack.enter_context((folder / name).open("rb")) for name in SET if (folder / name).exists()}
        yield PublishedSet(summary, {name: file for name, file in found.items() if file is not None})


def read_records(folder: Path) -> Iterator[Record]:
    """The kept records of a run folder, in order."""
    with open_set(folder) as published:
        yield from published.records()


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json; empty where there is none, or none that can be read."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{folder / 'summary.json'}: cannot be read ({error.strerror}).") from error
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}


def _named(summary: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What the summary says of a file; None where it is of a time before it said anything."""
    named: dict[str, Any] | None = summary.get("files", {}).get(name)
    return named


def _find(path: Path, summary: dict[str, Any], stack: contextlib.ExitStack) -> BufferedReader | None:
    """The file that the summary names, by its content: in its place, or still aside; None where it is neither."""
    named = _named(summary, path.name)
    for candidate in (path,) if named is None else (path, _aside_of(path)):
        with contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(candidate.open("rb"))
            if named is None or _holds(file, named):
                return file
    return None


def _holds(file: BufferedReader, named: dict[str, Any]) -> bool:
    if os.fstat(file.fileno()).st_size != named["bytes"]:
        return False
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return bool(found == named["sha256"])


def _finish(folder: Path) -> None:
    """Rename what a run that was killed while it published had still aside; the folder's lock is held."""
    summary = read_summary(folder)
    for path in (folder / name for name in (*SET, PREFERENCES)):
        named, aside = _named(summary, path.name), _aside_of(path)
        if named is not None and aside.is_file():
            with aside.open("rb") as file:
                belongs = _holds(file, named)
            if belongs:
                _take_place(path)


def _aside_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _take_place(path: Path) -> None:
    """Rename what was written aside, for good."""
    with _storage_errors(path):
        _aside_of(path).replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        crash.point("file.renamed")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}).") from error
