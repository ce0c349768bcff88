"""Taking things out for good: a source that is revoked, and versions that nobody needs any more.

A revocation is noted in revoked.json first and ticked off there last; in between it may be killed anywhere, and the
next command of the project finishes it. It sends nothing: what the set loses is filled up by the next tick.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline import cache, crash
from pipeline.errors import UsageError
from pipeline.money import usd
from pipeline.one_run import OneRun
from pipeline.records import DocumentSource, GraphSource, PromptSource, Record, Rejection, Source
from pipeline.regeneration import kept, spending
from pipeline.regeneration.assembly import assemble
from pipeline.regeneration.project import Project
from pipeline.regeneration.purge import files_shown, keys_showing, purge, stored_keys
from pipeline.regeneration.sources import Prepared, Revoked, files_of, item_ids, paths_of, prepare
from pipeline.regeneration.versions import Versions
from pipeline.run_folder import DerivedFiles, read_records, write_json
from pipeline.self_qa_requests import evidence_of, passages_in
from pipeline.settings import nearest

FILE = "revoked.json"
Entry = TypeVar("Entry", Record, Rejection)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Retraction:
    """What a revocation takes out of one source: the keys of its replies; and what is still there."""

    source: str
    generator: str
    name: str  # of the file or seed
    keys: set[str]
    live: set[str]
    passages: frozenset[str] = frozenset()  # of documents: their text, as an `input` shows it
    anew: str = ""  # what asking a chain anew would take


# ---------------------------------------------------------------- --revoke


def revoke(
    project: Project, versions: Versions, wanted: str, say: Say, *, lock: int, plan_only: bool
) -> dict[str, Any]:
    """Take a source out of the set, the journal and every later tick. Returns what went."""
    entries = _entries(project, versions, wanted)
    retractions = _retractions(project, versions, entries)
    records = _count(versions, retractions)
    keys = set().union(*(one.keys for one in retractions))
    places = ", ".join(f"{entry.name} in {entry.source}" for entry in entries)
    found = {"revoked": [asdict(entry) for entry in entries], "records": records, "replies": len(keys)}
    if plan_only:
        say(f"Would revoke {places}: {records} records would go, and {len(keys)} requests with their replies.")
        for one in retractions:
            if one.anew:
                say(f"In the next tick {one.anew}")
        say("Nothing was written.")
        return found
    others = [row for row in _read(project.out) if _entry(row) not in entries]
    write_json(project.out / FILE, [*others, *({**asdict(entry), "pending": True} for entry in entries)])
    crash.point("revocation.noted")
    say(f"Revoked {places}: {records} records and {len(keys)} requests with their replies go.")
    finish_revocations(project, versions, say, lock=lock)
    say(
        "Older versions still hold what they held (--gc 1 takes them away), and so do models trained on them; to take a"
        f" source back in, delete its entry in {project.out / FILE}."
    )
    return found


def finish_revocations(project: Project, versions: Versions, say: Say, *, lock: int) -> None:
    """Do what is noted and not done yet: a version without the sources, and a journal without their replies."""
    rows = _read(project.out)
    pending = [_entry(row) for row in rows if row["pending"]]
    if not pending:
        return
    retractions = _retractions(project, versions, pending)
    if versions.latest() is not None:
        _retract(project, versions, retractions, say, lock)
    for file in project.out.glob(f"{cache.NAME}*"):  # texts out of files; what is still wanted is read again
        file.unlink()
    purge(project.journal, set().union(*(one.keys for one in retractions)))
    write_json(project.out / FILE, [{**row, "pending": False} for row in rows])


def read_revoked(out: Path) -> list[Revoked]:
    """All that was ever revoked."""
    return [_entry(row) for row in _read(out)]


def _entries(project: Project, versions: Versions, wanted: str) -> list[Revoked]:
    """The sources' files or seeds of this name: those there are, and those that there were."""
    latest, found, names = versions.latest(), [], dict[str, str]()
    for source in project.sources:
        before = latest.manifest["sources"].get(source.name, {}).get("files", {}) if latest else {}
        asked = dict.fromkeys(files_shown(project.journal, source.name), "")
        now, paths = files_of(source), paths_of(source)
        known = {**asked, **before, **now}
        names |= known
        for name, hash_ in known.items():
            is_there = name in paths and paths[name].resolve() == Path(wanted).resolve()
            if is_there or wanted in (name, f"{source.name}/{name}"):
                copies = [other for other, same in now.items() if same == hash_ and other != name and name in now]
                found.append(Revoked(source.name, name, "" if copies else hash_))  # a copy is another document
    if not found:
        raise UsageError(f"--revoke: no source has {wanted!r}; {nearest(wanted, names)}.")
    return found


def _retractions(project: Project, versions: Versions, entries: Sequence[Revoked]) -> list[_Retraction]:
    """What goes, by source: requests that show what no other file holds, and what descends from them."""
    revoked = [*read_revoked(project.out), *entries]
    found = []
    for entry in entries:
        source = next((source for source in project.sources if source.name == entry.source), None)
        if source is None:  # no longer in the project file: all it ever asked goes
            found.append(
                _Retraction(
                    entry.source, "", entry.name, keys_showing(project.journal, entry.source, None, set()), set()
                )
            )
            continue
        ready = prepare(source, versions.aside / "sources" / source.name, project.out, revoked, None)
        live = ready.live if ready is not None else set()
        file = entry.name if source.generator == "self_qa" else None
        keys, anew = keys_showing(project.journal, source.name, file, live), _anew(ready) if ready is not None else ""
        chunks = ready.generator.chunks.values() if ready is not None and file is not None else ()
        passages = frozenset(text for chunk in chunks for text in (evidence_of(chunk), chunk.text))
        found.append(_Retraction(source.name, source.generator, entry.name, keys, live, passages, anew))
    return found


def _anew(ready: Prepared) -> str:
    """What the next tick would ask of a chain that has lost a seed, in words."""
    if ready.source.generator != "self_instruct":
        return ""
    one = OneRun(ready.source.settings, ready.generator, ready.model)
    plan = ready.generator.plan(ready.source.settings.target, lambda request: False)
    price = one.budget.price_of(plan.prompt_tokens, plan.completion_tokens)
    return f"{ready.name} is a chain and would be asked anew: about {plan.requests} requests, {usd(price)}."


def _count(versions: Versions, retractions: Sequence[_Retraction]) -> int:
    """How many records of the latest version would go."""
    latest = versions.latest()
    if latest is None:
        return 0
    records = list(read_records(latest.folder))
    return len(records) - len([record for record in records if _without(record, retractions) is not None])


# ---------------------------------------------------------------- a version without it


def _retract(project: Project, versions: Versions, retractions: Sequence[_Retraction], say: Say, lock: int) -> None:
    """The latest version again, from what its sources gave and is not revoked."""
    latest = versions.latest()
    assert latest is not None
    aside = versions.start()
    revoked = read_revoked(project.out)
    sources: dict[str, dict[str, Any]] = {}
    for name, before in latest.manifest["sources"].items():
        folder, old = aside / "sources" / name, latest.folder / "sources" / name
        folder.mkdir(parents=True)
        own = [one for one in retractions if one.source == name]
        number = _filter(old, folder, own)
        purged = set().union(*(one.keys for one in own))
        live = [one.live for one in own]
        for list_ in (kept.ITEMS, kept.KEPT, kept.REPLIES):
            ids = kept.read_ids(old / list_)
            kept.write_ids(folder / list_, ids - purged if list_ == kept.REPLIES else ids.intersection(*live))
        gone = {entry.name for entry in revoked if entry.source == name}
        hashes = {entry.hash for entry in revoked if entry.source == name}
        files = {file: hash_ for file, hash_ in before["files"].items() if file not in gone and hash_ not in hashes}
        sources[name] = {**before, "files": files, "records": number, "kept": len(kept.read_ids(folder / kept.KEPT))}
    what = ", ".join(one.name for one in retractions)
    tick = {name: latest.manifest[name] for name in ("latest_attempt",)}
    spent = {"sent": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
    assemble(project, versions, sources, {**tick, **spent}, say, lock=lock, retracted=what)
    spending.end(project.out)


def _filter(old: Path, folder: Path, retractions: Sequence[_Retraction]) -> int:
    """A source's records and rejections without what is revoked; returns how many records are left."""
    records = [record for entry in read_records(old) if (record := _without(entry, retractions)) is not None]
    ids = {record.id for record in records}
    with DerivedFiles(folder) as files:
        for record in records:
            files.keep(record)
        for entry in kept.read_rejections(old):
            rejection = _without(entry, retractions)
            if rejection is None:
                continue
            if retractions and rejection.neighbour is not None and rejection.neighbour.id not in ids:
                rejection = rejection.model_copy(update={"neighbour": None})  # its text may be of what went
            files.reject(rejection)
        files.publish({"kept": len(records)})
    return len(records)


def _without(entry: Entry, retractions: Sequence[_Retraction]) -> Entry | None:
    """The entry with the sources that are left; None where it has none, or rests on a reply that goes."""
    if not retractions or not entry.source:
        return entry
    left = tuple(source for source in entry.source if all(_supports(source, one) for one in retractions))
    purged = {key for one in retractions for key in one.keys}
    rests_on = [key for key in entry.requests if key in purged]
    if not left or (rests_on and len(entry.source) == 1) or any(_shows(entry, one) for one in retractions):
        return None
    if len(left) == len(entry.source) and not rests_on:
        return entry
    return entry.model_copy(
        update={"source": left, "requests": tuple(key for key in entry.requests if key not in purged)}
    )


def _shows(entry: Entry, retraction: _Retraction) -> bool:
    """Whether its input shows a passage that is not there any more, beside its own that is.

    The next tick puts others beside it, for nothing: the question and the answer are stored.
    """
    if retraction.generator != "self_qa" or not entry.input:
        return False
    is_of_it = any(isinstance(source, DocumentSource) and source.chunk in retraction.live for source in entry.source)
    return is_of_it and not retraction.passages.issuperset(passages_in(entry.input))


def _supports(source: Source, retraction: _Retraction) -> bool:
    """Whether a source of a record is left after the retraction."""
    if isinstance(source, DocumentSource):
        return retraction.generator != "self_qa" or source.document != retraction.name
    if isinstance(source, GraphSource):
        return retraction.generator != "self_kg" or item_ids(source.triples) <= retraction.live
    return (
        retraction.generator != "self_instruct"
        or not isinstance(source, PromptSource)
        or (retraction.name not in source.seeds)
    )


# ---------------------------------------------------------------- --gc


def collect(project: Project, versions: Versions, number: int, say: Say) -> dict[str, Any]:
    """Keep the last versions and the latest, and every reply that one of them read; what a tick asked since, too."""
    versions.tidy()
    there, latest = versions.all(), versions.latest()
    staying = {version.name for version in there[-number:]} | ({latest.name} if latest else set())
    going = [version for version in there if version.name not in staying]
    for version in going:
        versions.remove(version)
    wanted: set[str] = set()
    adapters: set[str] = set()
    for version in versions.all():
        for name in version.manifest["sources"]:
            wanted |= kept.read_ids(version.folder / "sources" / name / kept.REPLIES)
        adapters |= {version.manifest["adapter"], (version.manifest["training"] or {}).get("adapter")} - {None}
    unwanted = stored_keys(project.journal, latest.manifest["latest_attempt"]) - wanted if latest else set()
    if unwanted:
        purge(project.journal, unwanted)
    folders = list((project.out / "adapters").glob("*")) if going else []
    for folder in folders:
        if folder.name not in adapters:
            shutil.rmtree(folder)
    say(f"{len(going)} versions and {len(unwanted)} requests with their replies taken away; {len(staying)} kept.")
    return {"removed": [version.name for version in going], "kept": sorted(staying), "replies": len(unwanted)}


# ---------------------------------------------------------------- revoked.json


def _read(out: Path) -> list[dict[str, Any]]:
    path = out / FILE
    if not path.exists():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON ({error}).") from error
    return found


def _entry(row: dict[str, Any]) -> Revoked:
    return Revoked(row["source"], row["name"], row["hash"])
