"""Binary and marked-up documents are read in a child process: what breaks, hangs or swells there is one rejection.

    with Extractor(cache=folder / "cache.sqlite") as extractor:
        extracted = extractor.extract(".pdf", data)

What a file of the same bytes gave before comes from the cache, if there is one, and is not read again.
One child reads file after file, since starting one takes longer than most files. It has a limit on memory and on
processor time and gets bytes, no path; the parent has a limit on the clock and on how much comes back. A child that
dies takes one file with it, and the next file gets a new child.
The child (`main`) takes frames of suffix and bytes on stdin and answers each with JSON.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline import extras
from pipeline.cache import Cache, key_of
from pipeline.reading.blocks import Part

# suffix -> where its reader is, and the packages that it imports
READERS: dict[str, tuple[str, tuple[str, ...]]] = {
    ".pdf": ("pipeline.reading.pdf:read_pdf", ("pypdfium2",)),
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("pipeline.reading.markup:read_html", ("lxml", "trafilatura"))),
    ".docx": ("pipeline.reading.markup:read_docx", ("lxml", "mammoth")),
    ".epub": ("pipeline.reading.markup:read_epub", ("lxml", "defusedxml")),
    ".csv": ("pipeline.reading.tables:read_csv", ()),
    ".tsv": ("pipeline.reading.tables:read_tsv", ()),
    ".jsonl": ("pipeline.reading.tables:read_jsonl", ()),
    ".xlsx": ("pipeline.reading.tables:read_xlsx", ("openpyxl",)),
    ".parquet": ("pipeline.reading.tables:read_parquet", ("pyarrow",)),
}
GRAPHS = (".ttl", ".n3", ".nt", ".nq", ".jsonld", ".rdf", ".owl", ".graphml")
READERS |= dict.fromkeys(GRAPHS, ("pipeline.reading.graphs:read_graph", ("rdflib",)))
READERS[".graphml"] = (READERS[".graphml"][0], ())
ROOT = Path(__file__).resolve().parents[2]
MEMORY = 3 * 2**30  # bytes of address space, most of which libraries reserve and never touch
CPU_S = 120  # of processor time for one file
CLOCK_S = 180.0
LARGEST_TEXT = 64 * 2**20  # bytes that a child may send back
KIND = "text"  # in the cache
_HEADER = struct.Struct("!16s8sQ")


class BadFile(Exception):
    """A file, or what a reader made of it, that becomes no document. `kind` is the word it is counted under."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True, slots=True)
class Extracted:
    """A document's parts; remarks (kind, sentence) on what could not be read; how much was left out, by kind."""

    parts: list[Part]
    remarks: list[tuple[str, str]]
    dropped: Counter[str]


Reader = Callable[..., Extracted]  # of the bytes; of a graph also the suffix, and the language to say it in


class Extractor:
    """Hands files to the child, which is started when the first one comes."""

    def __init__(self, *, cache: Path | None = None, memory: int = MEMORY, clock_s: float = CLOCK_S) -> None:
        self._memory, self._clock_s = memory, clock_s
        self._child: subprocess.Popen[bytes] | None = None
        self._cache = Cache(cache) if cache is not None and cache.is_file() else None
        self.fresh: dict[bytes, bytes] = {}  # for the cache: its folder may not be ours yet

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._cache is not None:
            self._cache.__exit__()

    def extract(self, suffix: str, data: bytes, language: str = "auto") -> Extracted:
        """What the file holds; `language` is that in which a graph is said.

        Raises BadFile: damaged, too slow, too large, or a package is missing.
        """
        missing = [name for name in READERS[suffix][1] if importlib.util.find_spec(name) is None]
        if missing:
            install = extras.INSTALL.format("kg" if suffix in GRAPHS else "docs")
            raise BadFile("missing_package", f"{suffix} needs {', '.join(missing)}: {install}")
        key = key_of(_version(READERS[suffix][1]), suffix, language, data)
        known = self.fresh.get(key) or (self._cache.get(KIND, key) if self._cache is not None else None)
        answer = json.loads(known) if known is not None else self._exchange(suffix, data, language)
        if known is None and answer.get("kind") != "too_large":  # what one child could not hold, another may
            self.fresh[key] = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if "kind" in answer:
            if answer["kind"] == "too_large":
                self._end()  # what it took would be missing for the next file
            raise BadFile(answer["kind"], answer["detail"])
        return Extracted(
            [(kind, level, text) for kind, level, text in answer["parts"]],
            [(kind, remark) for kind, remark in answer["remarks"]],
            Counter(answer["dropped"]),
        )

    def _exchange(self, suffix: str, data: bytes, language: str) -> dict[str, Any]:
        if self._child is None:
            # By its name, so that its classes are one with the readers'.
            run = "from pipeline.reading.extraction import main; main()"
            command = [sys.executable, "-c", run, str(self._memory)]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        until = time.monotonic() + self._clock_s
        try:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # why it died, reading will tell
                header = _HEADER.pack(suffix.encode(), language.encode(), len(data))
                _write_until(self._child.stdin, header + data, until)
            size = int.from_bytes(_read_until(self._child.stdout, 8, until))
            if size > LARGEST_TEXT:
                raise BadFile("too_large", f"it unpacks to more than {LARGEST_TEXT >> 20} MB of text.")
            answer: dict[str, Any] = json.loads(_read_until(self._child.stdout, size, until))
        except TimeoutError:
            self._end()
            raise BadFile("too_slow", f"reading it took longer than {self._clock_s:g} s.") from None
        except EOFError:
            code = self._end()
            raise BadFile("damaged", f"its reader died ({_death(code)}).") from None
        except BadFile:
            self._end()
            raise
        return answer

    def _end(self) -> int:
        """End the child, however it is; its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        if child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)  # one that has closed its pipe is about to end by itself
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return child.wait()


@functools.cache
def _version(packages: tuple[str, ...]) -> str:
    """What the text depends on beside the file: the readers' own code, and the packages they stand on."""
    own = hashlib.sha256()
    for pattern in ("pipeline/reading/*.py", "pipeline/phrasing/*.py", "kg/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            own.update(path.read_bytes())
    return " ".join((own.hexdigest(), *(f"{name}=={importlib.metadata.version(name)}" for name in packages)))


def _write_until(pipe: IO[bytes], data: bytes, until: float) -> None:
    descriptor, rest = pipe.fileno(), memoryview(data)
    os.set_blocking(descriptor, False)
    while rest:
        _wait(None, descriptor, until)
        rest = rest[os.write(descriptor, rest[: 1 << 16]) :]


def _read_until(pipe: IO[bytes], size: int, until: float) -> bytes:
    pieces: list[bytes] = []
    while size:
        _wait(pipe.fileno(), None, until)
        piece = os.read(pipe.fileno(), min(size, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _wait(readable: int | None, writable: int | None, until: float) -> None:
    left = max(0.0, until - time.monotonic())
    reading = [] if readable is None else [readable]
    writing = [] if writable is None else [writable]
    if not any(select.select(reading, writing, [], left)[:2]):
        raise TimeoutError


def _death(code: int) -> str:
    return {-24: "out of processor time", -9: "killed", -11: "a crash", -6: "a crash"}.get(code, f"exit code {code}")


# Western European text in Windows-1252 or Latin-1: two letters with marks in a row at most, and a sign or two around.
# Of short texts the detector knows less than this: it reads "crème brûlée" as Romanian. What Polish, Czech and Turkish
# put into the same places (³, ¹, ð, þ …) is left out, so that theirs go on to it.
_HIGH = re.compile(rb"[\x80-\xff]+")
_WESTERN = re.compile(
    rb"[\x80\x85\x91-\x97\xa0\xa1\xa3\xa7\xa9\xab\xae\xb0\xb7\xbb\xbf]{0,2}"
    rb"[\xc0-\xcf\xd1-\xd6\xd8-\xdc\xdf-\xef\xf1-\xf6\xf8-\xfc\x8c\x9c\x9f]{0,2}"
    rb"[\x80\x85\x91-\x97\xa0\xa1\xa3\xa7\xa9\xab\xae\xb0\xb7\xbb\xbf]{0,2}"
)


def decode(data: bytes) -> str:
    """The text of bytes in UTF-8, or in the encoding that they look like."""
    return data.decode(guessed_encoding(data) or "utf-8-sig")


def guessed_encoding(data: bytes) -> str:
    """The encoding that bytes look like; "" where nothing is guessed, for they are UTF-8."""
    try:
        data.decode("utf-8-sig")
        return ""
    except UnicodeDecodeError:
        pass
    if b"\0" in data[:4096] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise BadFile("binary", "binary data under the name of a text file.")
    if all(_WESTERN.fullmatch(run) for run in _HIGH.findall(data)):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    if best is None:
        raise BadFile("unknown_encoding", "its encoding is unknown; save it as UTF-8.")
    return best.encoding


# ---------------------------------------------------------------- the child


def main() -> None:
    """Read files from stdin until it closes. Whatever a library prints goes to stderr."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while header := sys.stdin.buffer.read(_HEADER.size):
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + CPU_S + 1
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        suffix, language, size = _HEADER.unpack(header)
        data = sys.stdin.buffer.read(size)
        answer = _answer(suffix.rstrip(b"\0").decode(), language.rstrip(b"\0").decode(), data)
        payload = json.dumps(answer).encode()
        answers.write(len(payload).to_bytes(8) + payload)
        answers.flush()


def _answer(suffix: str, language: str, data: bytes) -> dict[str, Any]:
    module, _, name = READERS[suffix][0].partition(":")
    try:
        read: Reader = getattr(importlib.import_module(module), name)
        extracted = read(data, suffix, language) if suffix in GRAPHS else read(data)
    except BadFile as failed:
        return {"kind": failed.kind, "detail": failed.detail}
    except MemoryError:
        return {"kind": "too_large", "detail": "reading it takes more memory than a file may."}
    except Exception as error:  # noqa: BLE001  the border: a damaged file raises anything at all in its library
        detail = " ".join(str(error).split())[:200]
        return {"kind": "damaged", "detail": f"{type(error).__name__}: {detail}"}
    return {"parts": extracted.parts, "remarks": extracted.remarks, "dropped": extracted.dropped}
