"""One source of a project made ready: its generator, its files with their hashes, and what of it is revoked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.curation.rows import file_hash
from pipeline.errors import UsageError
from pipeline.llm import Model
from pipeline.models import open_model
from pipeline.one_run import OneRun
from pipeline.reading.documents import find_files
from pipeline.records import content_id
from pipeline.regeneration.project import GENERATORS, Source
from pipeline.seed_tasks import fingerprint, load_seed_tasks
from pipeline.self_qa import SelfQA
from pipeline.text import readable_name

UNITS = {"self_qa": "chunks", "self_kg": "facts and entities", "self_instruct": "seed tasks"}
UNREADABLE = "unreadable"  # stands for the hash of a file that cannot be read


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry of revoked.json: a file of a source, or the id of a seed task, and the hash of what it held."""

    source: str
    name: str
    hash: str


@dataclass
class Prepared:
    """A source with its generator; nothing is sent yet."""

    source: Source
    generator: Any  # of one of GENERATORS
    model: Model
    files: dict[str, str]  # name -> hash of its bytes; of seeds: id -> hash of the task
    live: set[str]  # ids of all items there are
    kept: set[str] = field(default_factory=set)  # items whose records are copied from the version before

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shaping(self) -> dict[str, Any]:
        """What shapes the requests; of Self-Instruct without its seeds, which are its source."""
        found = OneRun(self.source.settings, self.generator, self.model).shaping
        found.pop("seeds", None)
        return found


@dataclass(frozen=True, slots=True)
class Difference:
    """What is new, changed, renamed and gone among a source's files, by name."""

    new: list[str]
    changed: list[str]
    renamed: list[tuple[str, str]]
    gone: list[str]

    @property
    def is_none(self) -> bool:
        return not (self.new or self.changed or self.renamed or self.gone)


def prepare(
    source: Source, folder: Path, project: Path, revoked: Sequence[Revoked], adapter: str | None
) -> Prepared | None:
    """The source, ready; `folder` is where it will write. None where all of it is revoked.

    :param project: the project's folder, which holds the cache.
    :param adapter: what a better training step left; it takes the place of the shared model.
    :raises UsageError: where it cannot be read at all.
    """
    changed: dict[str, Any] = {"out": folder}
    if adapter is not None and source.follows and source.settings.needs_model:
        changed |= {"model": adapter, "base_url": None}
    settings = source.settings.model_copy(update=changed)
    files = files_of(source)
    out = left_out(source.name, files, revoked)
    if files and files.keys() <= out:
        return None
    if source.generator == "self_qa":
        generator: Any = SelfQA(settings, out, project)
    else:
        generator = GENERATORS[source.generator][0](settings, out)
    ready = Source(source.name, source.generator, settings, source.follows)
    files = {name: hash_ for name, hash_ in files.items() if name not in out}
    return Prepared(ready, generator, open_model(settings), files, generator.live)


def left_out(source: str, files: Mapping[str, str], revoked: Sequence[Revoked]) -> set[str]:
    """The names that are revoked, by name or because they hold what was."""
    own = [entry for entry in revoked if entry.source == source]
    names, hashes = {entry.name for entry in own}, {entry.hash for entry in own} - {UNREADABLE, ""}
    return {name for name, hash_ in files.items() if name in names or hash_ in hashes}


def files_of(source: Source) -> dict[str, str]:
    """The source's files by the name that records give them, with the hash of each; of seeds, the tasks."""
    if source.generator == "self_instruct":
        return {task.id: fingerprint([task]) for task in load_seed_tasks(source.settings.seeds)}
    return {name: _hash(path) for name, path in paths_of(source).items()}


def paths_of(source: Source) -> dict[str, Path]:
    """Where the files are that records give these names; of seeds, none."""
    settings = source.settings
    if source.generator == "self_qa":
        return {file.name: file.path for file in find_files(settings.paths)}
    if source.generator == "self_kg":
        paths = (*settings.graphs, *([settings.labels] if settings.labels else []))
        by_name = {readable_name(path.name): path for path in paths}
        if len(by_name) < len(set(paths)):
            raise UsageError(f"two files of {source.name} have the same name; rename one.")
        return by_name
    return {}


def _hash(path: Path) -> str:
    try:
        return file_hash(path) if path.is_file() else UNREADABLE
    except UsageError:
        return UNREADABLE


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> Difference:
    """A file that has gone and one that is new with the same bytes are one that was renamed."""
    gone = {name: hash_ for name, hash_ in before.items() if name not in now}
    new = [name for name in now if name not in before]
    renamed: list[tuple[str, str]] = []
    for name in list(new):
        old = next((old for old, hash_ in gone.items() if hash_ == now[name] != UNREADABLE), None)
        if old is not None:
            renamed.append((old, name))
            new.remove(name)
            del gone[old]
    changed = [name for name, hash_ in now.items() if name in before and before[name] != hash_]
    return Difference(new, changed, renamed, list(gone))


def item_ids(triples: Collection[tuple[str, str, str]]) -> set[str]:
    """The ids under which a graph's facts are known."""
    return {content_id(*triple) for triple in triples}
