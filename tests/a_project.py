"""A project of all three generators over a folder that tests edit, asked of a fake server.

Every document, fact and seed carries a word of its own, so that a test can tell which one a request is about, and
whether anything of it is left on the disk.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any

from pipeline.curation.rows import file_hash
from pipeline.regeneration.versions import Version, Versions
from tests.conftest import read_lines
from tests.fake_server import FakeServer, LedgerLine

DOCUMENT = (
    "# {word}\n\nThe {word} grinds barley in the old mill by the river. Its owner keeps {number} hens in a yard behind"
    " the mill, and sells their eggs in the village on Friday. In winter the {word} stands still, for the river is"
    " frozen from December until the end of February.\n"
)
SEED = "Explain how a {word} works to a child of {number} years."
PROJECT = """
name = "mill"
out = "{out}"
{extra}
[shared]
model = "fake"
base_url = "{base_url}"
concurrency = 4
{shared}
[[source]]
name = "docs"
generator = "self_qa"
paths = ["docs"]
per_chunk = 2
{docs}
[[source]]
name = "facts"
generator = "self_kg"
graphs = ["facts.tsv", "more.tsv"]
kinds = "tail,head,true"
per_fact = 1
filters = {{graph = false}}       # the fake server knows no graph; what it says is kept as it comes
[[source]]
name = "tasks"
generator = "self_instruct"
seeds = "seeds.jsonl"
target = {target}
per_task = 1
[curate]
near_duplicates = "off"
semantic_duplicates = "off"
{tables}
"""


class Folder:
    """The folder that is edited, and the project file beside it."""

    def __init__(self, root: Path, server: FakeServer) -> None:
        self.root, self.server = root, server
        self.values: dict[str, Any] = {
            "out": "out", "extra": "", "shared": "", "docs": "", "target": 4, "tables": "",
        }  # fmt: skip
        (root / "docs").mkdir(parents=True)
        for word in ("Quillfern", "Marrowick", "Tansyvole"):
            self.document(word)
        self.facts("facts.tsv", ["Ostrander\tlies in\tVelmoor", "Pellwick\tlies in\tVelmoor"])
        self.facts("more.tsv", ["Ostrander\thas mayor\tIdonea Carrow"])
        self.seeds = {
            f"seed_{word}": word for word in ("Gyroscope", "Bellows", "Sextant", "Abacus", "Quernloom", "Lathe")
        }
        self.write_seeds()
        self.write()

    def write(self, **values: Any) -> Path:
        """The project file, with these parts changed."""
        self.values |= values
        path = self.root / "regenerate.toml"
        path.write_text(PROJECT.format(base_url=self.server.base_url, **self.values), encoding="utf-8")
        return path

    def document(self, word: str, number: int = 12, name: str | None = None) -> Path:
        path = self.root / "docs" / (name or f"{word.lower()}.md")
        path.write_text(DOCUMENT.format(word=word, number=number), encoding="utf-8")
        return path

    def facts(self, name: str, lines: list[str]) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def write_seeds(self) -> None:
        tasks = [
            {
                "id": id_,
                "instruction": SEED.format(word=word, number=len(word)),
                "instances": [{"input": "", "output": f"A {word} is a clever thing."}],
                "is_classification": False,
            }
            for id_, word in self.seeds.items()
        ]
        (self.root / "seeds.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")

    @property
    def versions(self) -> Versions:
        return Versions(self.root / self.values["out"])

    @property
    def latest(self) -> Version:
        version = self.versions.latest()
        assert version is not None
        return version

    def data(self) -> dict[str, bytes]:
        """What the latest version is: its records and rejections, and each source's."""
        folder = self.latest.folder
        names = [
            "records.jsonl",
            "rejected.jsonl",
            *sorted(str(p.relative_to(folder)) for p in folder.glob("sources/*/*.jsonl")),
        ]
        return {name: (folder / name).read_bytes() for name in names}

    def records(self) -> list[dict[str, Any]]:
        return read_lines(self.latest.folder / "records.jsonl")

    def traces(self, word: str, *, within: Path | None = None) -> list[str]:
        """The files of the latest version (or below a folder) that hold a word."""
        folder = within or self.latest.folder
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return [path.name for path in files if _holds(path.read_bytes(), word)]

    def in_journal(self, word: str) -> list[str]:
        """Where the journal holds a word: requests and replies by their key, and its files as they lie on the disk."""
        path = self.root / self.values["out"] / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            found = [
                key
                for key, body in connection.execute("SELECT key, body FROM requests")
                if _holds(zlib.decompress(body), word)
            ]
            rows = connection.execute("SELECT key, coalesce(raw, '') || coalesce(detail, '') FROM attempts")
            found += [key for key, text in rows if _holds(text if isinstance(text, bytes) else text.encode(), word)]
            found += ["free pages"] * bool(connection.execute("PRAGMA freelist_count").fetchone()[0])
        return found + [file.name for file in path.parent.glob("journal.sqlite*") if _holds(file.read_bytes(), word)]


def _holds(data: bytes, word: str) -> bool:
    return word.lower().encode() in data.lower()


def said(line: LedgerLine) -> str:
    """What a request says, all of it."""
    return json.dumps(line["body"], ensure_ascii=False)


def damaged(version: Version) -> list[str]:
    """The files of a version that are not there, or not with the bytes that its manifest names."""
    files = {version.folder / name: hash_ for name, hash_ in version.manifest["files"].items()}
    return [path.name for path, hash_ in files.items() if not path.is_file() or file_hash(path) != hash_]
