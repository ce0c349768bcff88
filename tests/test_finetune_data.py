"""What is trained on: shapes, labels, the audit, held-out tasks, the split and the control.

python -m pytest tests/test_finetune_data.py
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune import evaluate, measure
from finetune.data import (
    HELD_OUT,
    SAMPLE,
    Example,
    candidates,
    example_of,
    main_language,
    read,
    sample_control,
    split,
    without_held_out,
)
from pipeline.curation.parents import open_parent
from pipeline.errors import UsageError
from pipeline.novelty import NoveltyIndex
from pipeline.records import DocumentSource, GraphSource, PromptSource, Rejection, make_record
from pipeline.text import count_words, language_of
from tests.tiny_models import SILENT_TEMPLATE, TEMPLATE, letters, write_rows

pytest.importorskip("transformers", reason="the trainer needs the extra: pip install -e .[local,train]")
from finetune import rows as finetune_rows
from finetune import training
from pipeline.backends.chat_template import render_chat


def example(*texts: str, group: str = "") -> Example:
    roles = ("user", "assistant") * len(texts)
    return Example(tuple(zip(roles, texts, strict=False)), group)


def encode(examples: list[Example], tokenizer: Any = None, **settings: Any) -> tuple[list[Any], Any]:
    tokenizer = tokenizer or letters()
    return finetune_rows.encode(tokenizer, examples, stops=finetune_rows.stop_ids(tokenizer), **settings)


def learnt(tokenizer: Any, row: Any) -> list[str]:
    """The stretches of a row that are learnt, as text."""
    return [part.partition("⟧")[0] for part in finetune_rows.show(tokenizer, row).split("⟦")[1:]]


# ---------------------------------------------------------------- shapes

CONVERSATION = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you"))
SPEAKERS = ("human", "gpt", "human")
SHAPES: list[tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = [
    ({"instruction": "Add", "input": "1 1", "output": "2"}, (("user", "Add\n\n1 1"), ("assistant", "2"))),
    ({"instruction": "Hi", "output": "Hello"}, (("user", "Hi"), ("assistant", "Hello"))),
    ({"instruction": "Bye", "output": "See you", "history": [["Hi", "Hello"]]}, CONVERSATION),
    ({"messages": [{"role": role, "content": text} for role, text in CONVERSATION]}, CONVERSATION),
    (
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in CONVERSATION]},
        CONVERSATION,
    ),
    (
        {"conversations": [{"from": who, "value": said} for who, said in zip(SPEAKERS, "AB?", strict=True)]},
        (("user", "A"), ("assistant", "B")),
    ),
    ({"prompt": "Hi", "completion": "Hello"}, (("user", "Hi"), ("assistant", "Hello"))),
    (
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
        (("user", "Hi"), ("assistant", "Hello")),
    ),
    ({"content": "long text", "summary": "short"}, (("user", "long text"), ("assistant", "short"))),
    ({"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]}, (("user", "Hi"), ("assistant", "Hello"))),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), SHAPES)
def test_every_shape_becomes_the_same_conversation(row: dict[str, Any], messages: object, tmp_path: Path) -> None:
    lines, array, packed = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "a.jsonl.gz"
    write_rows(lines, [row])
    array.write_text(json.dumps([row]), encoding="utf-8")
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    for path in (lines, array, packed):
        assert [example.messages for example in read(path).examples] == [messages]


def test_preference_pairs_and_documents_have_a_stage_of_their_own(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}])
    assert read(pairs, "dpo").examples[0].rejected == "No"
    alike = [{"prompt": "Hi", "chosen": "Hello", "rejected": rejected} for rejected in ("Hello ", "No")]
    source = read(write_rows(tmp_path / "alike.jsonl", alike), "dpo")
    assert (len(source.examples), source.empty) == (1, 1)  # nothing is learnt where both are the same
    with pytest.raises(UsageError, match="what was rejected is no text"):
        read(write_rows(tmp_path / "none.jsonl", [alike[0] | {"rejected": None}]), "dpo")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "old.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"old\.txt cannot be read as text"):
        read(tmp_path / "docs", "pretrain")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "Once upon a time"}])
    assert read(texts, "pretrain").examples[0].answer == "Once upon a time"
    for path in (pairs, texts):
        with pytest.raises(UsageError, match="--stage"):
            read(path)


BAD = [
    ("", "holds no rows"),
    ('{"question": "Hi", "reply": "Hello"}', "has the keys question, reply, which is none of"),
    ("[1, 2]", "row 1: a list"),
    ('{"instruction": "Hi", "output"', "line 1: not JSON"),
    ('{"instruction": "Hi", "output": ""}', "none of its 1 rows has an answer"),
    ('{"instruction": "Hi", "output": "Hello"}\n{"instruction": "Hi"}', "row 2: not a row of the shape Alpaca"),
    ('{"conversations": [{"from": "moderator", "value": "Hi"}]}', "spoken by 'moderator'"),
    ('{"instruction": "Hi", "output": 7}', "a int, not a text"),
    ('{"instruction": null, "output": "Hello"}', "what the user says is missing"),
    ('{"instruction": "Hi", "output": "Hello", "history": ["Hey"]}', "no pair of what the user and the assistant said"),
    ('{"instruction": "Hi", "instances": []}', "it has no instance"),
    ('{"messages": null}', "its turns are no list of objects"),
    ('{"messages": ["Hi", "Hello"]}', "its turns are no list of objects"),
    ('{"instruction": "Hi", "output": null}', "none of its 1 rows has an answer"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_cannot_be_read_is_said_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read(path)


def test_rows_with_an_empty_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", " "), ("user", "Bye"), ("assistant", "See you")]
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]},
        {"messages": [{"role": role, "content": text} for role, text in turns]},  # one would teach to say nothing
    ]
    source = read(write_rows(tmp_path / "rows.jsonl", rows))
    assert (len(source.examples), source.empty) == (1, 2)


def test_tables_are_read_as_others_write_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"instruction": "Say it, please", "input": "", "output": "數\nline"}, {"instruction": "Hi", "output": "Ho"}]
    wanted = [(("user", row["instruction"]), ("assistant", row["output"])) for row in rows]
    table = '\ufeffinstruction,input,output\r\n"Say it, please",,"數\nline"\r\nHi,,Ho\r\n'
    (tmp_path / "a.csv").write_bytes(table.encode())
    (tmp_path / "a.jsonl").write_bytes("\ufeff".encode() + "\r\n".join(map(json.dumps, rows)).encode())
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert [example.messages for example in read(tmp_path / name).examples] == wanted


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "a \\ud800 b", "output": "c"}', encoding="utf-8")
    assert read(path).examples[0].question == "a \ufffd b"  # no UTF-8 file could hold the other


def test_a_missing_file_and_a_folder_that_is_no_run_folder(tmp_path: Path) -> None:
    for name in ("nothing.jsonl", "nothing"):
        with pytest.raises(UsageError, match=f"{name}: there is no such file or folder"):
            read(tmp_path / name)
    with pytest.raises(UsageError, match="no run folder"):
        read(tmp_path)


# ---------------------------------------------------------------- labels


def test_only_answers_are_learnt_each_with_its_stop_token() -> None:
    tokenizer = letters()
    rows, audit = encode([example("Hi", "Hello", "Bye", "See you")], tokenizer)
    assert learnt(tokenizer, rows[0]) == ["Hello<|im_end|>", "See you<|im_end|>"]
    assert (audit.rows, audit.stopped, audit.apart) == (1, 1, 0)


def test_the_stop_token_is_learnt_though_it_is_the_padding_too() -> None:
    tokenizer = letters(pad="<|im_end|>")
    rows, _ = encode([example("Hi", "Hello")], tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert [label for label in rows[0].labels if label != -100][-1] == tokenizer.eos_token_id


def test_a_template_without_a_stop_token_gets_one_appended_after_every_answer() -> None:
    tokenizer = letters(SILENT_TEMPLATE)
    rows, audit = encode([example("Hi", "Hello", "Bye", "See you")], tokenizer)
    assert [learnt(tokenizer, row) for row in rows] == [["Hello\n<|im_end|>"], ["See you\n<|im_end|>"]]
    assert (audit.stop_appended, audit.stopped, audit.rows) == (1, 2, 2)


def test_a_model_without_a_template_gets_a_plain_one_that_stops() -> None:
    tokenizer = letters(None)
    size = len(tokenizer)
    assert "plain" in finetune_rows.ensure_template(tokenizer)
    rows, _ = encode([example("Hi", "Hello", "Bye", "See you")], tokenizer)
    assert learnt(tokenizer, rows[0]) == ["Hello<|im_end|>", "See you<|im_end|>"]
    assert len(tokenizer) == size  # no token was added


@pytest.mark.parametrize("text", ["Hello", " Hello", "\n\nHello", "Hel<|im_end|>lo", "  indented\n  code", "数据"])
def test_a_row_begins_with_the_very_ids_the_model_is_asked_with(text: str) -> None:
    tokenizer = letters()
    rows, _ = encode([example("Say <|im_start|> hello ", text)], tokenizer)
    prompt = render_chat(tokenizer, (("user", "Say <|im_start|> hello "),))
    assert rows[0].input_ids[: len(prompt)] == prompt
    assert set(rows[0].labels[: len(prompt)]) == {-100}
    assert learnt(tokenizer, rows[0]) == [f"{text}<|im_end|>"]
    assert rows[0].input_ids.count(tokenizer.eos_token_id) == 2  # the text's own control strings are ordinary text


def test_answers_that_start_with_white_space_are_read_apart_where_tokens_would_merge() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>")
    tokenizer.chat_template = TEMPLATE
    rows, audit = encode([example("Hi", "\n\nHello")], tokenizer)
    prompt = render_chat(tokenizer, (("user", "Hi"),))
    assert rows[0].input_ids[: len(prompt)] == prompt
    assert audit.merged == 1


def test_a_template_that_rewrites_earlier_turns_makes_a_row_of_each_answer() -> None:
    forgetful = TEMPLATE.replace("m['content']", "(m['content'] if loop.last or m.role == 'user' else '…')")
    tokenizer = letters(forgetful)
    rows, audit = encode([example("Hi", "Hello", "Bye", "See you")], tokenizer)
    assert [learnt(tokenizer, row) for row in rows] == [["Hello<|im_end|>"], ["See you<|im_end|>"]]
    assert audit.apart == 1


def test_a_template_that_puts_other_words_before_an_answer_is_refused() -> None:
    lying = TEMPLATE.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>oracle\n' }}{% endif")
    tokenizer = letters(lying)
    _, audit = finetune_rows.encode(tokenizer, [example("Hi", "Hello")] * 3, stops=[tokenizer.eos_token_id])
    assert audit.unfit == 3
    with pytest.raises(UsageError, match="3 of 3 conversations"):
        finetune_rows.check(audit)


def test_rows_too_long_are_dropped_whole_and_counted() -> None:
    examples = [example("Hi", "Hello")] * 2 + [example("Hi", "long " * 50)]
    rows, audit = encode(examples, max_length=64)
    assert (len(rows), audit.too_long, audit.stopped) == (2, 1, 2)
    assert audit.lengths["longest"] > 64
    with pytest.raises(UsageError, match="longer than --max-length 8"):
        finetune_rows.check(encode(examples, max_length=8)[1])


def test_two_start_tokens_are_refused() -> None:
    tokenizer = letters("{{ bos_token }}" + TEMPLATE)
    with pytest.raises(UsageError, match="two start tokens"):
        finetune_rows.check(encode([example("Hi", "Hello")], tokenizer)[1])


def test_the_audit_shows_two_rows_with_what_is_learnt_marked() -> None:
    _, audit = encode([example("Hi", "Hello"), example("Bye", "See you"), example("A", "B")])
    finetune_rows.check(audit)
    text = "\n".join(finetune_rows.describe(audit))
    assert "⟦Hello<|im_end|>⟧" in text
    assert "⟦See you<|im_end|>⟧" in text
    assert "3 of 3 rows teach a stop token" in text


# ---------------------------------------------------------------- held-out tasks, split, control


SEEDS = Path(__file__).parents[1] / "seeds"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_shipped_files_are_whole_and_do_not_collide(language: str) -> None:
    tasks, sample = read(HELD_OUT[language]).examples, read(SAMPLE).examples
    assert len(tasks) == 40
    assert len(sample) >= 120
    assert [task.task for task in tasks] == ["classification"] * 10 + ["generation"] * 30
    assert {task.language for task in tasks} == {language}
    rows = [json.loads(line) for line in HELD_OUT[language].read_text(encoding="utf-8").splitlines()]
    assert [row.keys() - {"task"} for row in rows] == [{"instruction", "input", "output"}] * 40
    others = [*sample, *read(SEEDS / "175.jsonl").examples, *read(SEEDS / "175_zh.jsonl").examples]
    kept = without_held_out(others, tasks)
    assert [example.question for example in others if example not in kept] == []
    assert without_held_out(tasks, tasks) == []
    index = NoveltyIndex(0.7)
    for number, other in enumerate(others):
        index.add(other.question, str(number))
    assert [task.question for task in tasks if index.nearest(task.question)] == []


def test_the_plain_texts_are_of_one_length() -> None:
    texts = {language: path.read_text(encoding="utf-8") for language, path in measure.PLAIN_TEXT.items()}
    assert [language_of(texts[language]) for language in ("en", "zh")] == ["en", "zh"]
    assert [len(text.strip().split("\n\n")) for text in texts.values()] == [5, 5]
    assert count_words(texts["zh"]) == pytest.approx(count_words(texts["en"]), rel=0.1)


def test_what_is_measured_follows_the_language_of_most_rows() -> None:
    chinese, english = (
        example("天为什么是蓝的？", "因为空气散射蓝光。"),
        example("Why is the sky blue?", "Air scatters."),
    )
    assert main_language([chinese, chinese, english]) == "zh"
    assert main_language([chinese, english, english]) == "en"
    assert main_language([chinese, english]) == "en"
    said: list[str] = []
    for language in ("en", "zh"):
        assert evaluate.read_tasks(None, language, said.append) == read(HELD_OUT[language]).examples
        assert said.pop() == f"Held-out tasks: 40 of finetune/{HELD_OUT[language].name}, the language of most rows"
    assert len(evaluate.read_tasks(SAMPLE, "zh", said.append)) == len(read(SAMPLE).examples)
    assert said.pop().endswith(f" of {SAMPLE}")


def test_the_language_of_a_run_is_noted_and_never_compared(tmp_path: Path) -> None:
    training.fingerprint(tmp_path, {"data": "a"}, language="zh")
    assert evaluate.language_of_run(tmp_path) == "zh"
    (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    training.fingerprint(tmp_path, {"data": "a"}, language="en")
    with pytest.raises(UsageError, match=r"\(data: a -> b\)"):
        training.fingerprint(tmp_path, {"data": "b"}, language="en")


def test_near_duplicates_and_quotes_of_held_out_tasks_collide() -> None:
    task = example("Summarise the story of the little red hen in two short sentences.", "x")
    quoting = "First read this. " * 9 + task.question + " Then count the words." * 9
    known = [
        example("Please summarise the story of the little red hen in two short sentences!", "y"),
        example(quoting, "y"),
        example(task.question, "y", "Hello", "Hi"),  # an earlier turn counts too
    ]
    new = [example("Tell the story of the three little pigs to a child of four.", "y")]
    assert without_held_out([*known, *new], [task]) == new


def test_a_split_never_parts_a_group() -> None:
    examples = [example(f"Question {n} about w{n // 4}x", "a", group=f"document {n // 4}") for n in range(40)]
    learn, watch = split(examples, 0.2, seed=1)
    assert len(learn) + len(watch) == 40
    assert 4 <= len(watch) <= 16
    assert not {e.group for e in learn} & {e.group for e in watch}
    assert split(examples, 0.2, seed=1) == (learn, watch)
    assert split(examples, 0.2, seed=2)[1] != watch


def test_near_duplicate_questions_stay_on_one_side() -> None:
    words = ("apples", "bridges", "clouds", "dragons", "engines", "forests", "guitars", "harbours")
    examples = [example(f"{word} {word}a {word}b {word}c {n}", "x") for word in words for n in range(3)]
    learn, watch = split(examples, 0.2, seed=0)
    assert watch
    assert not {e.question.split()[0] for e in learn} & {e.question.split()[0] for e in watch}


def test_too_few_groups_leave_nothing_to_watch() -> None:
    examples = [example("One two three four", str(n), group="same") for n in range(20)]
    assert split(examples, 0.2, seed=0) == (examples, [])


@pytest.mark.parametrize("seed", range(6))
def test_a_split_leaves_something_to_learn_from(seed: int) -> None:
    sizes = (1, 1, 1, 1, 16)
    examples = [example(f"Q{g} {n}", "a", group=f"document {g}") for g, size in enumerate(sizes) for n in range(size)]
    learn, _ = split(examples, 0.5, seed)
    assert learn


def record(instruction: str, source: Any) -> Any:
    return make_record(
        instruction=instruction, output="out", task="qa", generator="g", model="m", language="en", source=source,
        prompts={}, requests=[],
    )  # fmt: skip


def test_records_are_grouped_by_document_and_by_subject() -> None:
    document = DocumentSource(document="a.md", chunk="1", start=0, end=1)
    assert example_of(record("Q", document)).group == "document a.md"
    assert example_of(record("Q", GraphSource(triples=(("Mars", "is", "red"),)))).group == "subject Mars"
    assert example_of(record("Q", PromptSource(prompt=0, seeds=(), pool=()))).group == ""


def run_folder(folder: Path, kept: int, rejected: int) -> Path:
    folder.mkdir()
    source = PromptSource(prompt=0, seeds=(), pool=())
    records = [record(f"kept {n}", source) for n in range(kept)]
    turned_away = [
        Rejection(stage="record", filter="f", reason="r", instruction=f"bad {n}", output="o", generator="g", model="m")
        for n in range(rejected)
    ]
    turned_away.append(
        Rejection(stage="instruction", filter="f", reason="r", instruction="none", generator="g", model="m")
    )
    (folder / "records.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")
    (folder / "rejected.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in turned_away), encoding="utf-8")
    return folder


def test_the_control_comes_from_all_that_reached_an_output(tmp_path: Path) -> None:
    pool, about = candidates(run_folder(tmp_path / "a", kept=6, rejected=4))
    assert about == "all candidates, kept or rejected"
    assert sorted(e.question for e in pool) == [f"bad {n}" for n in range(4)] + [f"kept {n}" for n in range(6)]
    assert sample_control(pool, 5, seed=0) == sample_control(pool, 5, seed=0) != sample_control(pool, 5, seed=1)


def test_a_curated_folders_control_comes_from_its_inputs(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path / "a", 3, 1), run_folder(tmp_path / "b", 4, 0)
    curated = run_folder(tmp_path / "c", 1, 0)
    parents = [open_parent(first).as_json(), open_parent(second).as_json()]
    (curated / "config.json").write_text(json.dumps({"shaping": {}, "parents": parents}), encoding="utf-8")
    pool, about = candidates(curated)
    assert {e.question for e in pool} == {"kept 0", "kept 1", "kept 2", "kept 3"}
    assert about == "what it was curated from"
    with (first / "records.jsonl").open("a", encoding="utf-8") as file:
        file.write(record("new", PromptSource(prompt=0, seeds=(), pool=())).model_dump_json() + "\n")
    with pytest.raises(UsageError, match="has changed since"):
        candidates(curated)
    shutil.rmtree(second)
    (curated / "config.json").write_text(json.dumps({"shaping": {}, "parents": parents[1:]}), encoding="utf-8")
    with pytest.raises(UsageError, match="which is gone"):
        candidates(curated)


@pytest.mark.parametrize("command", ["run", "evaluate", "merge", "chat"])
def test_help_needs_no_torch(command: str) -> None:
    code = (
        f"import sys\nfrom finetune import {command}\n"
        f"try:\n    {command}.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
