"""Tables as parts: a row becomes one line of text, "attribute: value; attribute: value", as Self-QA writes records.

Runs in the child process (extraction.py). A row that cannot be read is a remark, and the others go on.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.reading.blocks import Part
from pipeline.reading.extraction import LARGEST_TEXT, BadFile, Extracted, decode

MOST_REMARKS = 20  # on single rows of one file; the rest is counted


def read_csv(data: bytes) -> Extracted:
    """Comma-separated values, or what the sniffer finds them separated by; the first row names the attributes."""
    text = decode(data)
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:8192], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    return _extracted(_of_sequences(csv.reader(io.StringIO(text, newline=""), dialect)))


def read_tsv(data: bytes) -> Extracted:
    """Tab-separated values; the first row names the attributes."""
    return _extracted(_of_sequences(csv.reader(io.StringIO(decode(data), newline=""), csv.excel_tab)))


def read_xlsx(data: bytes) -> Extracted:
    """A workbook, sheet after sheet, formulas as their stored values."""
    import openpyxl

    from pipeline.reading.markup import check_zip

    check_zip(data)
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    parts: list[Part] = []
    for sheet in book.worksheets:
        rows = _extracted(_of_sequences(sheet.iter_rows(values_only=True))).parts
        if rows and len(book.worksheets) > 1:
            parts.append(("heading", 1, sheet.title))
        parts += rows
    return Extracted(parts, [], Counter())


def read_jsonl(data: bytes) -> Extracted:
    """One JSON object a line."""
    rows: list[Mapping[str, object]] = []
    remarks: list[tuple[str, str]] = []
    for number, line in enumerate(decode(data).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            remarks.append(("bad_row", f"line {number}: not JSON ({error})."))
            continue
        if isinstance(value, dict):
            rows.append(value)
        else:
            remarks.append(("bad_row", f"line {number}: not a JSON object."))
    if not rows and remarks:
        raise BadFile("damaged", remarks[0][1])
    if len(remarks) > MOST_REMARKS:
        more = len(remarks) - MOST_REMARKS
        remarks[MOST_REMARKS:] = [("bad_row", f"{more} more lines cannot be read.")]
    return _extracted(rows, remarks)


def read_parquet(data: bytes) -> Extracted:
    """A Parquet table."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(io.BytesIO(data))
    return _extracted(row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())


# ---------------------------------------------------------------- rows


def _of_sequences(rows: Iterable[Sequence[object]]) -> Iterator[Mapping[str, object]]:
    """Rows by the names that the first one gives; a column without a name is called by its number."""
    names: list[str] | None = None
    for row in rows:
        if names is None:
            if any(cell not in (None, "") for cell in row):
                names = [str(cell) if cell not in (None, "") else f"column {at}" for at, cell in enumerate(row, 1)]
            continue
        names += [f"column {at}" for at in range(len(names) + 1, len(row) + 1)]
        yield dict(zip(names, row, strict=False))


def _extracted(rows: Iterable[Mapping[str, object]], remarks: Sequence[tuple[str, str]] = ()) -> Extracted:
    parts: list[Part] = []
    size = 0
    for row in rows:
        text = "; ".join(f"{name}: {said}" for name, value in row.items() if (said := _said(value)))
        if text:
            parts.append(("row", 0, text))
            size += len(text)
        if size > LARGEST_TEXT:
            raise BadFile("too_large", f"more than {LARGEST_TEXT >> 20} MB of text.")
    return Extracted(parts, list(remarks), Counter())


def _said(value: object) -> str:
    """A value in one line; lists and objects keep their JSON."""
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return " ".join(str(value).split())
