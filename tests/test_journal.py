"""The journal: exact bytes in and out, whatever was asked and whatever broke; old layouts stay readable."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.backends.endpoint import parse_reply
from pipeline.errors import StorageError, UsageError
from pipeline.journal import LAYOUT, Ended, Journal, Used
from pipeline.llm import Request, canonical_json, most_prompt_tokens
from pipeline.records import PromptSource, Record, make_record
from pipeline.run_folder import DerivedFiles, read_records
from pipeline.text import replace_surrogates

LAYOUT_1 = Path(__file__).parent / "data/journal_layout_1.sqlite"
MOST = (100, 50)


def key_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def answer(journal: Journal, body: bytes, raw: bytes, tokens: tuple[int | None, int | None] = (7, 3)) -> str:
    attempt = await journal.begin_attempt(key_of(body), body, model="m", most_tokens=MOST)
    ended = Ended("answered", prompt_tokens=tokens[0], completion_tokens=tokens[1], raw=raw, flaws=("length",))
    await journal.end_attempt(attempt, ended, settles=(key_of(body), "openai"))
    return key_of(body)


# ---------------------------------------------------------------- layouts


async def test_a_journal_of_layout_1_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    shutil.copy(LAYOUT_1, path)
    for _ in range(2):  # the second time there is nothing to do
        with Journal(path) as journal:
            for number in range(3):
                request = Request(
                    (("system", "You are asked."), ("user", f"Question {number}: é 中 \x00 \ud800")),
                    max_tokens=100 + number, sample=number,
                )  # fmt: skip
                key = key_of(request.body("old-model"))
                assert key in journal
                stored = await journal.outcome(key)
                assert stored.reader == "openai"
                assert parse_reply(stored.raw).text == f"Answer {number} 中"
            totals = await journal.totals()
            assert await journal.refused_parameters("http://127.0.0.1:1/v1", "old-model") == {"temperature"}
        assert (totals.requests, totals.attempts, totals.answered, totals.failed) == (6, 7, 3, 1)
        assert totals.unknown == 2  # one that timed out, one whose end never came
        assert totals.faults == {"bad_request": 1, "server_error": 1, "timeout": 1}
        used = totals.used["old-model"]
        assert (used.prompt_tokens, used.completion_tokens) == (33, 3)
        assert used.completion_bound == 104 + 105
        assert used.prompt_bound > 2 * 128
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == LAYOUT
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    connection.close()


async def test_old_and_new_journals_have_the_same_tables(tmp_path: Path) -> None:
    shutil.copy(LAYOUT_1, tmp_path / "old.sqlite")
    shapes = []
    for name in ("old", "new"):
        with Journal(tmp_path / f"{name}.sqlite"):
            pass
        connection = sqlite3.connect(tmp_path / f"{name}.sqlite")
        tables = ("requests", "attempts", "outcomes", "refused_parameters", "shown")
        shapes.append([connection.execute(f"PRAGMA table_info({table})").fetchall() for table in tables])
        connection.close()
    assert shapes[0] == shapes[1]


def test_a_journal_from_the_future_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "new.sqlite")
    connection.execute(f"PRAGMA user_version = {LAYOUT + 1}")
    connection.close()
    with pytest.raises(UsageError, match="newer instructloop"), Journal(tmp_path / "new.sqlite"):
        pass
    (tmp_path / "text.sqlite").write_bytes(b"this is no database, whatever its name says\n" * 40)
    with pytest.raises(UsageError, match=r"text\.sqlite: is damaged, or no journal"), Journal(tmp_path / "text.sqlite"):
        pass
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE addresses (name)")
    connection.close()
    with pytest.raises(UsageError, match="of something else"), Journal(tmp_path / "other.sqlite"):
        pass
    tables = sqlite3.connect(tmp_path / "other.sqlite").execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("addresses",)], "it is as it was"


async def test_a_journal_with_a_damaged_page_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        for number in range(200):
            await answer(journal, f'{{"a":{number}}}'.encode(), b"x" * 500)
    data = bytearray((tmp_path / "j.sqlite").read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (tmp_path / "j.sqlite").write_bytes(data)
    with pytest.raises(UsageError, match="is damaged, or no journal"), Journal(tmp_path / "j.sqlite"):
        pass


# ---------------------------------------------------------------- what is counted


async def test_what_is_not_known_counts_at_its_worst_until_it_is_known(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        body = b'{"a":1}'
        sent = await journal.begin_attempt(key_of(body), body, model="m", most_tokens=MOST)
        assert (await journal.totals()).used == {"m": Used(0, 0, *MOST)}
        assert (await journal.totals()).unknown == 1
        await journal.end_attempt(sent, Ended("rate_limit", status=429))
        assert (await journal.totals()).used == {"m": Used()}
        assert (await journal.totals()).unknown == 0
        sent = await journal.begin_attempt(key_of(body), body, model="m", most_tokens=MOST)
        await journal.end_attempt(sent, Ended("timeout", raw=b"half a rep"))
        assert (await journal.totals()).used == {"m": Used(0, 0, *MOST)}
        assert (await journal.totals()).unknown == 1
        await answer(journal, b'{"b":1}', b"{}", (7, None))
        totals = await journal.totals()
        assert totals.used == {"m": Used(7, 0, MOST[0], 2 * MOST[1])}
        assert totals.faults == {"rate_limit": 1, "timeout": 1, "length": 1}
        assert totals.unknown == 1


# ---------------------------------------------------------------- a full disk


async def test_a_full_disk_breaks_the_journal_at_once_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    stored: list[str] = []

    async def fill(journal: Journal) -> None:
        for number in range(1000):
            stored.append(await answer(journal, b"%d" % number, b"x" * 2000))  # noqa: PERF401 - the list is what is left

    with Journal(path, max_pages=40) as journal:
        with pytest.raises(StorageError, match=r"could not be written .* nothing stored is lost"):
            await fill(journal)
        with pytest.raises(StorageError):  # nothing more is taken, even where it would fit
            await journal.refuse_parameter("e", "m", "p")
        assert (await journal.totals()).answered == len(stored)  # reading goes on
        assert len((await journal.outcome(stored[0])).raw) == 2000
    assert len(stored) > 10
    with Journal(path) as journal:
        assert (await journal.totals()).answered == len(stored)
        await answer(journal, b"after", b"there is room again")
        assert [key in journal for key in stored] == [True] * len(stored)


async def test_many_at_once_are_written_in_few_commits_and_all_there(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        keys = await asyncio.gather(*(answer(journal, b"%d" % number, b"r%d" % number) for number in range(500)))
        raws = [(await journal.outcome(key)).raw for key in keys]
    assert raws == [b"r%d" % number for number in range(500)]


async def test_a_waiter_that_is_cancelled_does_not_stop_the_others(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        tasks = [asyncio.ensure_future(answer(journal, b"%d" % number, b"r")) for number in range(20)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results].index(True) == 3
        assert sum(isinstance(result, str) for result in results) == 19


# ---------------------------------------------------------------- any text there is


def joined(text: str) -> str:
    """JSON cannot tell two surrogates side by side from the one character that they make; so they are that here."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


ANY_TEXT = st.text(st.characters(), max_size=60).map(joined)  # lone surrogates included
FEWER = settings(max_examples=settings().max_examples // 4)  # where an example is dear
ODD = "\x00\ud800 \udfff\u202e\u2066\U000e0041\u200b\ufeff\r\n\u2028 a\u0301\u0301 \x1b[2J \ufffd"


@FEWER
@given(asked=ANY_TEXT, answered=ANY_TEXT, raw=st.binary(max_size=200))
@example(asked=ODD, answered=ODD, raw=b"\x00\xff\xfe")
@example(asked="x" * 10_000_000, answered="line " * 2_000_000, raw=b"\n" * 10_000_000)
def test_any_text_goes_through_the_journal_byte_for_byte(asked: str, answered: str, raw: bytes) -> None:
    body = Request((("user", asked),), max_tokens=5).body("m")
    assert json.loads(body)["messages"] == [["user", asked]]
    # as a server would send it: JSON with escapes, or the bytes themselves
    reply = {"choices": [{"message": {"content": answered}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    escaped, other = json.dumps(reply).encode(), body + b" "

    async def there_and_back(folder: Path) -> None:
        with Journal(folder / "j.sqlite") as journal:
            await answer(journal, body, escaped)
            await answer(journal, other, raw)
        with Journal(folder / "j.sqlite") as journal:
            stored = await journal.outcome(key_of(body))
            assert stored.raw == escaped
            assert parse_reply(stored.raw).text == answered
            assert (await journal.outcome(key_of(other))).raw == raw

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(there_and_back(Path(folder)))


@FEWER
@given(texts=st.lists(ANY_TEXT, min_size=5, max_size=5))
@example(texts=[ODD, "x" * 10_000_000, ODD * 2, "", "\n\n"])
def test_any_text_goes_through_records_and_back(texts: list[str]) -> None:
    instruction, input_, output, user, assistant = texts
    record = make_record(
        instruction=instruction, input=input_, output=output, history=[(user, assistant)], task="generation",
        generator="g", model="m", language="en", source=PromptSource(prompt=0, seeds=(), pool=()), prompts={},
        requests=[],
    )  # fmt: skip
    assert [record.instruction, record.input, record.output, *record.history[0]] == list(map(replace_surrogates, texts))
    with tempfile.TemporaryDirectory() as folder:
        with DerivedFiles(Path(folder)) as files:
            files.keep(record)
            files.keep(record)
            files.publish({})
        assert (Path(folder) / "records.jsonl").read_bytes().count(b"\n") == 2
        assert list(read_records(Path(folder))) == [record, record]
    assert Record.model_validate_json(record.model_dump_json()) == record


@given(text=ANY_TEXT, schema=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3))
def test_a_request_never_has_more_tokens_than_its_bound(text: str, schema: dict[str, str]) -> None:
    """A byte-level tokenizer gives at most one token a byte; templates add a few to each message."""
    request = Request((("system", text), ("user", text)), max_tokens=5, schema=schema)
    bytes_sent = 2 * len(text.encode("utf-8", "replace")) + len(
        json.dumps(schema, ensure_ascii=False).encode("utf-8", "replace")
    )
    assert most_prompt_tokens(request.body("m")) >= bytes_sent + 2 * 8


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | ANY_TEXT,
                          lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
                          max_leaves=8))  # fmt: skip
def test_canonical_json_has_one_spelling_and_loses_nothing(value: object) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)
