"""With --keep: the records of items that did not change, copied from the version before, whatever shaped them.

A copied record names its document by what it is called now, and its quotes stand where they are now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.reading.chunks import Chunk
from pipeline.records import DocumentSource, GraphSource, Record, Rejection, Source
from pipeline.regeneration.sources import Prepared, item_ids
from pipeline.run_folder import open_set, read_records

ITEMS, KEPT, REPLIES = "items.txt", "kept.txt", "replies.txt"  # of a source's folder in a version


def read_ids(path: Path) -> set[str]:
    return set(path.read_text(encoding="utf-8").split()) if path.exists() else set()


def write_ids(path: Path, ids: set[str]) -> None:
    path.write_text("".join(f"{id_}\n" for id_ in sorted(ids)), encoding="utf-8")


def to_keep(prepared: Prepared, before: Path | None, *, changed: bool, keep: bool, accept: bool) -> set[str]:
    """The items whose records are copied: those kept before stay so until the change is accepted."""
    if before is None or ((accept or changed) and not keep):
        return set()
    were = read_ids(before / ITEMS) if changed else read_ids(before / KEPT)
    if prepared.source.generator == "self_instruct":  # a chain is kept whole, or not at all
        return set(prepared.live) if were == prepared.live else set()
    return were & prepared.live


def copied(prepared: Prepared, before: Path) -> tuple[list[Record], list[Rejection]]:
    """The records and rejections of the items to keep, out of a source's folder in the version before."""
    chunks: Mapping[str, Chunk] = getattr(prepared.generator, "chunks", {})
    records = [
        record.model_copy(update={"source": sources})
        for record in read_records(before)
        if (sources := _kept_sources(record.source, prepared.kept, chunks))
    ]
    rejections = [
        rejection.model_copy(update={"source": sources})
        for rejection in read_rejections(before)
        if rejection.stage != "file" and (sources := _kept_sources(rejection.source, prepared.kept, chunks))
    ]
    return records, rejections


def read_rejections(folder: Path) -> Iterator[Rejection]:
    """The rejections of a run folder, in order."""
    with open_set(folder) as published:
        yield from published.rejections()


def _kept_sources(sources: tuple[Source, ...], kept: set[str], chunks: Mapping[str, Chunk]) -> tuple[Source, ...]:
    found: list[Source] = []
    for source in sources:
        if isinstance(source, DocumentSource):
            if source.chunk in kept:
                found.append(_moved(source, chunks[source.chunk]))
        elif not isinstance(source, GraphSource) or item_ids(source.triples) <= kept:
            found.append(source)
    return tuple(found)


def _moved(source: DocumentSource, chunk: Chunk) -> DocumentSource:
    by = chunk.start - source.start
    quotes = [quote.model_copy(update={"start": quote.start + by, "end": quote.end + by}) for quote in source.quotes]
    place = {"document": chunk.document, "start": chunk.start, "end": chunk.end, "quotes": tuple(quotes)}
    return source.model_copy(update=place)


def bad_files(folder: Path, source: str, files: Mapping[str, str]) -> list[list[str]]:
    """What of its files a source could not read: its name, the kind, the reason, and the file's hash."""
    found: list[list[str]] = []
    for rejection in read_rejections(folder):
        if rejection.stage == "file":
            names = [part.document for part in rejection.source if isinstance(part, DocumentSource)]
            hash_ = files.get(names[0], "") if names else ""
            found.append([source, rejection.filter, rejection.reason, hash_])
    return found


def read_reported(path: Path) -> list[list[str]]:
    """What was said of bad files before; where that is damaged, it is said once more."""
    try:
        found: list[list[Any]] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return found if isinstance(found, list) else []
