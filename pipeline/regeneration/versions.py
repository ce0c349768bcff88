"""Versions of a project's set: written aside, checked, renamed; LATEST moves last, so no reader sees half of one.

outputs/NAME/versions/20261122T031500Z-3f9a0c1e2b4d/
  records.jsonl rejected.jsonl summary.json config.json    the set
  sources/NAME/…                                           what each source gave, and which replies it read
  manifest.json                                            parent, settings, counts, cost, a hash of every file
outputs/NAME/LATEST -> versions/…                          follow it once, then read
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import crash
from pipeline.curation.rows import file_hash
from pipeline.errors import StorageError, UsageError
from pipeline.llm import canonical_json
from pipeline.records import Record
from pipeline.run_folder import read_records, write_json

MANIFEST = "manifest.json"
DATA = ("records.jsonl", "rejected.jsonl")  # the files whose bytes make a version what it is


@dataclass(frozen=True, slots=True)
class Version:
    """A version that is complete on the disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def passed(self) -> bool:
        return not self.manifest["gate"]["reasons"]


class Versions:
    """The versions of one project; hold its lock to change anything."""

    def __init__(self, out: Path) -> None:
        self._out, self.folder = out, out / "versions"
        self.aside = self.folder / ".new"

    def all(self) -> list[Version]:
        """Every version, the oldest first."""
        if not self.folder.is_dir():
            return []
        return [read_version(path) for path in sorted(self.folder.iterdir()) if not path.name.startswith(".")]

    def newest(self) -> Version | None:
        """The last one made, whether or not the gate let it pass."""
        return next(reversed(self.all()), None)

    def latest(self) -> Version | None:
        """The one that LATEST names."""
        link = self._out / "LATEST"
        return read_version(self.folder / link.readlink().name) if link.is_symlink() else None

    def find(self, name: str) -> Version:
        """The version of a name, of the beginning of one, or LATEST. Raises UsageError where it is none, or several."""
        if name == "LATEST":
            latest = self.latest()
            if latest is None:
                raise UsageError(f"{self._out}: there is no LATEST yet.")
            return latest
        found = [version for version in self.all() if version.name.startswith(Path(name).name)]
        if len(found) != 1:
            names = ", ".join(version.name for version in self.all()) or "none"
            raise UsageError(f"{name!r} names {len(found)} versions; there are: {names}.")
        return found[0]

    def start(self) -> Path:
        """An empty folder to write into."""
        self.tidy()
        self.aside.mkdir(parents=True)
        return self.aside

    def tidy(self) -> None:
        """Take away what a killed process left behind: a version half written, or half removed."""
        for left in self.folder.glob(".*") if self.folder.is_dir() else ():
            shutil.rmtree(left)

    def drop(self) -> None:
        """Take away what was written aside."""
        shutil.rmtree(self.aside, ignore_errors=True)

    def publish(self, manifest: dict[str, Any]) -> Version:
        """Give what was written aside its manifest and its name. Everything is on the disk before that."""
        made = datetime.now(UTC).replace(microsecond=0)
        newest = self.newest()
        if newest is not None:  # names sort by age, also within a second, and where the clock was set back
            made = max(made, datetime.fromisoformat(newest.manifest["made"]) + timedelta(seconds=1))
        name = f"{made:%Y%m%dT%H%M%SZ}-{manifest['content'][:12]}"
        manifest = {"version": name, "made": made.isoformat(), **manifest}
        check_records(self.aside, manifest["counts"]["records"])
        manifest["files"] = {path: file_hash(self.aside / path) for path in _files_in(self.aside)}
        write_json(self.aside / MANIFEST, manifest)
        _sync_all(self.aside)
        crash.point("version.written")
        self.aside.rename(self.folder / name)
        _sync(self.folder)
        crash.point("version.renamed")
        return Version(self.folder / name, manifest)

    def make_latest(self, version: Version) -> None:
        """Move LATEST, in one step."""
        aside = self._out / ".LATEST.new"
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path("versions") / version.name)
        aside.replace(self._out / "LATEST")
        _sync(self._out)
        crash.point("latest.moved")

    def remove(self, version: Version) -> None:
        """Take a version away: first out of sight, then off the disk."""
        gone = self.folder / f".{version.name}.gone"
        version.folder.rename(gone)
        crash.point("version.hidden")
        shutil.rmtree(gone)


def read_version(folder: Path) -> Version:
    try:
        return Version(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder}: no version that can be read ({error}).") from error


def check_records(folder: Path, expected: int) -> None:
    """What was written reads back as records, as many as were kept."""
    try:
        number = sum(1 for _ in read_records(folder))
    except UsageError as error:
        raise StorageError(f"It does not read back. {error}") from error
    if number != expected:
        raise StorageError(f"{folder / 'records.jsonl'}: holds {number} records, not {expected}.")


def content_of(folder: Path, sources: dict[str, Any]) -> str:
    """A hash of what makes a version another one: its records and rejections, and what its sources were."""
    hashes = {path: file_hash(folder / path) for path in _files_in(folder) if path.rpartition("/")[2] in DATA}
    shapes = {name: [source["shaping"], source["files"], source["kept"]] for name, source in sources.items()}
    return hashlib.sha256(canonical_json([hashes, shapes])).hexdigest()


def differences(before: Version, after: Version) -> dict[str, Any]:
    """Ids of added and removed records, and [before, after] of those that answer the same question otherwise."""
    old, new = ({record.id: question_of(record) for record in read_records(v.folder)} for v in (before, after))
    removed = {question: id_ for id_, question in old.items() if id_ not in new}
    added = {id_: question for id_, question in new.items() if id_ not in old}
    changed = [[removed[question], id_] for id_, question in added.items() if question in removed]
    pairs = {id_ for pair in changed for id_ in pair}
    return {
        "added": [id_ for id_ in added if id_ not in pairs],
        "removed": [id_ for id_ in old if id_ not in new and id_ not in pairs],
        "changed": changed,
    }


def question_of(record: Record) -> str:
    """What a record asks, whatever it answers."""
    asked = [record.generator, record.instruction, record.input, record.history]
    return hashlib.sha256(canonical_json(asked)).hexdigest()


# ---------------------------------------------------------------- the disk


def _files_in(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def _sync_all(folder: Path) -> None:
    for path in (*_walk(folder), folder):
        _sync(path)


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        yield path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
