"""Rows of a data file that others made: jsonl, json, csv, parquet or txt, each but parquet also as .gz.

One place knows the formats, and says file and line where something is wrong. Rows stream, but for .json, which has to
be read whole.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UsageError

LONGEST_LINE = 16_000_000  # characters
FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt")


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and its number from 1: of the line, where the format has lines."""

    number: int
    value: Any


def format_of(path: Path) -> str:
    """The suffix that tells the format, .gz aside. Raises UsageError for one that is not known."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in FORMATS or (suffix.lower() == ".parquet" and path.suffix == ".gz"):
        raise UsageError(
            f"{path}: {path.name!r} is none of {', '.join(FORMATS)}, nor one of these (.parquet aside) as .gz."
        )
    return suffix.lower()


def file_hash(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error


def read_rows(path: Path, *, text_lines: bool = False) -> Iterator[Row]:
    """The rows of a file, blank lines left out; with `text_lines`, .txt too, a line a row.

    Raises UsageError with file, line and what is wrong.
    """
    format_ = format_of(path)
    if format_ == ".txt" and not text_lines:
        raise UsageError(f"{path}: plain text has no instruction and output; give jsonl, json, csv or parquet.")
    try:
        if format_ == ".parquet":
            yield from _parquet_rows(path)
            return
        with _opened(path) as file:
            yield from _READERS[format_](path, file)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8; save the file in that encoding.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file ({error}).") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _opened(path: Path) -> IO[str]:
    binary = gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _jsonl_rows(path: Path, file: IO[str]) -> Iterator[Row]:
    for number, line in _lines(path, file):
        try:
            yield Row(number, json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON ({error}).") from error


def _json_rows(path: Path, file: IO[str]) -> Iterator[Row]:
    try:
        value = json.load(file)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error}).") from error
    lists = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise UsageError(f"{path}: holds no list of rows, nor an object with one list in it.")
    for number, row in enumerate(lists[0], 1):
        yield Row(number, row)


def _csv_rows(path: Path, file: IO[str]) -> Iterator[Row]:
    rows = csv.DictReader(file)
    try:
        for row in rows:
            values: dict[str | None, Any] = dict(row)
            if None in values:
                raise UsageError(f"{path}, line {rows.line_num}: more fields than the header has.")
            yield Row(rows.line_num, values)
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: not CSV ({error}).") from error


def _txt_rows(path: Path, file: IO[str]) -> Iterator[Row]:
    for number, line in _lines(path, file):
        yield Row(number, line.strip())


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{path}: reading parquet takes pyarrow: pip install -c constraints.txt -e '.[dedup]'."
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, value)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a parquet file ({error}).") from error


def _lines(path: Path, file: IO[str]) -> Iterator[tuple[int, str]]:
    """Lines at newlines alone: str.splitlines would also cut at U+2028, which JSON strings may hold."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:  # a small .gz can hold a line larger than the memory
            raise UsageError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters.")
        if line.strip():
            yield number, line


_READERS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".txt": _txt_rows}
