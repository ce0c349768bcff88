"""The run folder: its lock, its config.json, and the derived files, which a reader never sees half-written.

config.json      resolved settings and versions; never a key
journal.sqlite   every request and reply (journal.py)
records.jsonl    what was kept        } written aside and renamed: the old file
rejected.jsonl   what was not, why    } or the new one, never a mix
preferences.jsonl  pairs of answers, with --pairs
summary.json     counts, tokens, seconds
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline import crash
from pipeline.errors import FolderBusy, StorageError, UsageError
from pipeline.records import Preference, Record, Rejection, Source


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, creating it. Raises FolderBusy naming the holder; a killed holder leaves no lock behind."""
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
        yield


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


def write_json(path: Path, value: object) -> None:
    """A JSON file, written aside and renamed."""
    with _aside(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


class DerivedFiles:
    """The records and rejections of one run, in item order, built aside and published whole.

    Memory stays flat: what was kept waits in a file, and only the sources of merged duplicates in a dict.
    """

    def __init__(self, folder: Path, *, preferences: bool = False) -> None:
        """With `preferences` there is a third file, preferences.jsonl; without, one from before is taken away."""
        self._folder = folder
        self._names = ("records", "rejected", *(["preferences"] if preferences else []))
        self._merged: dict[str, list[Source]] = {}
        self._parts: dict[str, IO[str]] = {}
        self._broken: StorageError | None = None  # a line is missing: nothing is published any more

    def __enter__(self) -> DerivedFiles:
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
        """Bring records.jsonl, rejected.jsonl, preferences.jsonl where it is wanted, and summary.json up to date."""
        if self._broken is not None:
            raise self._broken
        for name, part in self._parts.items():
            with _storage_errors(self._folder):
                part.flush()
            with _aside(self._folder / f"{name}.jsonl") as file, self._part(name).open(encoding="utf-8") as lines:
                file.writelines(map(self._with_sources, lines))
        if "preferences" not in self._names:
            (self._folder / "preferences.jsonl").unlink(missing_ok=True)
        write_json(self._folder / "summary.json", summary)

    def _write(self, name: str, line: str) -> None:
        try:
            with _storage_errors(self._folder):
                self._parts[name].write(line + "\n")
        except StorageError as error:
            self._broken = error
            raise

    def _with_sources(self, line: str) -> str:
        if not self._merged:
            return line
        fields = json.loads(line)
        more = self._merged.get(fields["id"])
        if not more:
            return line
        fields["source"] += [source.model_dump(mode="json") for source in more]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"

    def _part(self, name: str) -> Path:
        return self._folder / f".{name}.part"


def read_records(folder: Path) -> Iterator[Record]:
    """The kept records of a run folder, in order."""
    with (folder / "records.jsonl").open(encoding="utf-8") as lines:
        yield from map(Record.model_validate_json, lines)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of `path` once it is complete and on the disk."""
    aside = path.with_name(f".{path.name}.new")
    with _storage_errors(path):
        with aside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        crash.point("file.written")
        aside.replace(path)
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
