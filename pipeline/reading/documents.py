"""Documents: from paths to text with structure, one file after the other, and none of them able to stop the run.

    for entry in read_documents([Path("docs")], generator="self_qa"):
        ...                    # a Document, or the Rejection of a file that could not be read

Text formats are read here; binary ones in a child process with limits on memory and time (`extraction`). A file that
is no document, is damaged, too large, or lies outside the folder that was named, is one Rejection with its reason.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.hygiene import clean
from pipeline.reading import extraction
from pipeline.reading.blocks import Document, join_parts, read_markdown, read_plain
from pipeline.reading.extraction import BadFile
from pipeline.records import DocumentSource, Rejection
from pipeline.text import language_of, readable_name

MOST_NAMED = 10  # files, where something is said of many
LARGEST_FILE = 64 * 2**20  # bytes
MARKDOWN = {".md", ".markdown", ".mkd"}
PLAIN = {".txt", ".text", ".rst", ".log"}
ENCODED = MARKDOWN | PLAIN | {".csv", ".tsv", ".jsonl", ".html", ".htm", ".xhtml"}  # text, in some encoding
SUFFIXES = sorted(MARKDOWN | PLAIN | set(extraction.READERS))


@dataclass(frozen=True, slots=True)
class Found:
    """A path to read: where it is, and the name that records give it, relative to what was named."""

    path: Path
    name: str
    root: Path


def read_documents(
    paths: Sequence[Path],
    *,
    generator: str,
    extractor: extraction.Extractor | None = None,
    language: str = "auto",
    leave_out: Collection[str] = (),
) -> Iterator[Document | Rejection]:
    """Every document under the paths (folders, files, globs) but those to leave out, in the order of their names.

    `language` is that in which graphs are said; other documents have their own.

    :raises UsageError: for a path that does not exist, or one under which there is nothing.
    """
    found = [file for file in find_files(paths) if file.name not in leave_out]
    with contextlib.ExitStack() as stack:
        reader = extractor or stack.enter_context(extraction.Extractor())
        for file in found:
            try:
                document, remarks = read_file(file, reader, language)
            except BadFile as bad:
                yield rejected_file(file.name, bad.kind, bad.detail, generator)
                continue
            for kind, remark in remarks:
                yield rejected_file(file.name, kind, remark, generator)
            yield document


def rejected_file(name: str, kind: str, detail: str, generator: str) -> Rejection:
    """A file, or a part of one, that could not be read; the model is filled in where one is known."""
    source = DocumentSource(document=name, chunk="", start=0, end=0)
    return Rejection(
        stage="file", filter=kind, reason=f"{name}: {detail}", generator=generator, model="", source=(source,)
    )


# ---------------------------------------------------------------- guessed encodings


def guessed_encodings(documents: Sequence[Document]) -> dict[str, list[str]]:
    """Encoding -> the names of the files that were read in it, for they were not UTF-8.

    An API's description is a document by itself, named after a line of its file.
    """
    found: dict[str, list[str]] = {}
    for document in documents:
        if document.guessed:
            found.setdefault(document.guessed, []).append(document.name.partition(", line ")[0])
    return {encoding: list(dict.fromkeys(names)) for encoding, names in found.items()}


def said_of_guesses(guessed: Mapping[str, Sequence[str]]) -> list[str]:
    """The same in sentences, one an encoding."""
    said = []
    for encoding, names in guessed.items():
        files, were = (f"{len(names)} files", "were") if len(names) > 1 else ("1 file", "was")
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        shown = ", ".join(names[:MOST_NAMED])
        said.append(
            f"{files} {were} not UTF-8 and {were} read as {encoding}: {shown}{more}. If that is wrong, save as UTF-8."
        )
    return said


# ---------------------------------------------------------------- finding files


def find_files(paths: Sequence[Path]) -> list[Found]:
    """The files under the paths, each once, sorted by name. Names that begin with a dot are passed over."""
    if not paths:
        raise UsageError("no documents: name a folder, files or globs, such as docs/.")
    found: dict[Path, Found] = {}
    for path in paths:
        before = len(found)
        for file in _under(path):
            found.setdefault(file.path, replace(file, name=readable_name(file.name)))
        if len(found) == before and not any(file.path == path for file in found.values()):
            raise UsageError(f"{path}: holds no file.")
    shared = Counter(file.name for file in found.values())
    by_name: dict[str, Found] = {}
    for file in sorted(found.values(), key=lambda file: (file.name, str(file.path))):
        # a/x.md and b/x.md, both named on the command line, are told apart by their folders: a number would move on to
        # another document as soon as one comes or goes, and with it what is revoked by that name.
        own = file.name if shared[file.name] == 1 else f"{file.name} ({readable_name(file.root.resolve().name)})"
        name, number = own, 2
        while name in by_name:
            name, number = f"{own} ({number})", number + 1
        by_name[name] = Found(file.path, name, file.root)
    return list(by_name.values())


def _under(path: Path) -> Iterator[Found]:
    if path.is_dir():
        yield from _walk(path)
    elif os.path.lexists(path):
        yield Found(path, path.name, path.parent)
    else:
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []  # noqa: PTH207
        if not matches:
            raise UsageError(f"{path}: there is no such file, folder or glob.")
        for match in map(Path, matches):
            if not match.is_dir():
                yield Found(match, match.name, match.parent)


def _walk(root: Path) -> Iterator[Found]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]  # os.walk does not follow them
        for name in (*files, *links):
            if not name.startswith("."):
                path = Path(folder) / name
                yield Found(path, path.relative_to(root).as_posix(), root)


# ---------------------------------------------------------------- reading one


def read_file(file: Found, extractor: extraction.Extractor, language: str) -> tuple[Document, list[tuple[str, str]]]:
    """The document in a file, and remarks about parts of it that could not be read. Raises BadFile."""
    suffix = file.path.suffix.lower()
    if suffix not in SUFFIXES and file.path.is_dir():
        raise BadFile("unsupported_format", "a link to a folder, which is not followed; name the folder itself.")
    if suffix not in SUFFIXES:
        raise BadFile("unsupported_format", f"{suffix or 'no suffix'} is none of {' '.join(SUFFIXES)}.")
    data = bytes_of(file)
    remarks: list[tuple[str, str]] = []
    if suffix in extraction.READERS:
        extracted = extractor.extract(suffix, data, language if suffix in extraction.GRAPHS else "auto")
        cleaned = [(kind, level, clean(text)) for kind, level, text in extracted.parts]
        text, blocks = join_parts([(kind, level, part) for kind, level, (part, _) in cleaned if part.strip()])
        remarks = extracted.remarks
        dropped = extracted.dropped
        for _, _, (_, counts) in cleaned:
            dropped.update(counts)
    else:
        text, dropped = clean(extraction.decode(data))
        text, blocks, more = read_markdown(text) if suffix in MARKDOWN else read_plain(text)
        dropped.update(more)
    if not any(block.kind != "heading" for block in blocks):
        raise BadFile("no_text", "it holds no text.")
    guessed = extraction.guessed_encoding(data) if suffix in ENCODED else ""
    return Document(file.name, text, tuple(blocks), language_of(text), dropped, guessed), remarks


def bytes_of(file: Found) -> bytes:
    """What the file holds, if it is a regular file inside its folder and not too large."""
    try:
        real = file.path.resolve(strict=True)
        if not real.is_relative_to(file.root.resolve()):
            raise BadFile("outside_folder", "a link that leaves the folder; name its target instead.")
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not make us wait
        with os.fdopen(descriptor, "rb") as handle:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadFile("no_regular_file", "not a regular file.")
            if status.st_size > LARGEST_FILE:
                raise BadFile("too_large", f"{status.st_size >> 20} MB, above {LARGEST_FILE >> 20} MB; split it.")
            data = handle.read(LARGEST_FILE + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise BadFile("unreadable", f"cannot be read ({reason}).") from error
    if not data:
        raise BadFile("no_text", "the file is empty.")
    return data
