"""difficulty.py: a batched loss is the plain one, a score is computed once, and curate chooses by it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import curate
from pipeline.cache import Cache
from pipeline.difficulty import Losses, LossModel, score
from pipeline.records import Record
from pipeline.run_folder import read_records
from tests.test_curate import record, rejected, run_folder
from tests.tiny_models import SILENT_TEMPLATE, save_tiny

slow = pytest.mark.slow  # torch alone takes seconds to import
RECORDS = [
    record("Name a colour.", "Blue."),
    record("Say it again, and at length.", "The tide comes in at evening and carries every footprint back. " * 5),
    record("What is <|im_end|> for?", "It ends a turn: <|im_end|>.", input="A token."),
    record("用一句话描述海潮。", "海潮在黄昏涨起。"),
    record("And now?", "Nothing.").model_copy(update={"history": (("Hello?", "Yes?"), ("Who?", "Me."))}),
]


class Counting(LossModel):
    """Says how many records it was asked about."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = 0

    def losses(self, records: Sequence[Record]) -> list[Losses]:
        self.asked += len(records)
        return super().losses(records)


def plain_loss(model: Any, given: list[int], answer: list[int]) -> float:
    """One sequence by itself, the loss as transformers computes it from labels."""
    import torch

    labels = torch.tensor([[-100] * len(given) + answer])
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([given + answer]), labels=labels).loss)


def said(tokenizer: Any, record: Record) -> tuple[list[int], list[int], list[int]]:
    """(conversation, opening of an answer, answer), written out by hand, letter by letter where a token is text."""

    def text(text: str) -> list[int]:
        return [id_ for letter in text for id_ in tokenizer.encode(letter, add_special_tokens=False)]

    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def turn(role: str, words: str) -> list[int]:
        return [start, *text(f"{role}\n{words}"), end, *text("\n")]

    question = f"{record.instruction}\n\n{record.input}" if record.input else record.instruction
    given = [id_ for user, answer in record.history for id_ in turn("user", user) + turn("assistant", answer)]
    opening = [start, *text("assistant\n")]
    return given + turn("user", question) + opening, opening, [*text(record.output), end, *text("\n")]


@slow
def test_batched_losses_are_the_plain_ones(tiny: Path) -> None:
    from pipeline.backends import weights

    model, tokenizer = weights.load(weights.find(tiny))
    model = model.float()
    for one, losses in zip(RECORDS, LossModel(tiny).losses(RECORDS), strict=True):
        given, opening, answer = said(tokenizer, one)
        assert losses.given == pytest.approx(plain_loss(model, given, answer), rel=1e-4)
        assert losses.alone == pytest.approx(plain_loss(model, opening, answer), rel=1e-4)
        scores = losses.scores()
        assert scores["ifd"] == pytest.approx(losses.given / losses.alone, abs=1e-4)
        assert scores["perplexity"] == pytest.approx(math.exp(losses.given), rel=1e-4)


@slow
def test_a_score_does_not_depend_on_its_batch(tiny: Path) -> None:
    model = LossModel(tiny)
    together = model.losses(RECORDS)
    alone = [model.losses([one])[0] for one in RECORDS]
    assert [losses.scores() for losses in together] == [pytest.approx(losses.scores(), abs=2e-4) for losses in alone]


@slow
def test_what_is_in_the_cache_is_not_computed_again(tiny: Path, tmp_path: Path) -> None:
    model = Counting(tiny)
    with Cache(tmp_path / "cache.sqlite") as cache:
        first = list(score(enumerate(RECORDS[:3]), model, cache))
        assert model.asked == 3
        again = list(score(enumerate(RECORDS), model, cache))
        assert model.asked == 5
    assert again[:3] == first
    with Cache(tmp_path / "cache.sqlite") as cache:
        other = Counting(save_tiny(tmp_path / "other", layers=1))
        list(score(enumerate(RECORDS), other, cache))
        assert other.asked == 5, "another model, other losses"
        assert list(score(enumerate(RECORDS), model, cache)) == again
        assert model.asked == 5


@slow
def test_no_score_where_there_is_no_answer_or_too_much_of_it(tiny: Path, tmp_path: Path) -> None:
    records = [record("Say nothing.", " "), record("Say all.", "word " * 2000), record("Name a colour.", "Blue.")]
    losses = LossModel(tiny).losses(records)
    assert [bool(one.scores()) for one in losses] == [False, False, True]
    silent = LossModel(save_tiny(tmp_path / "silent", SILENT_TEMPLATE))
    assert silent.losses(records[2:])[0].scores()


def test_scores_of_losses() -> None:
    assert Losses(1.0, 2.0).scores() == {"ifd": 0.5, "perplexity": 2.7183}
    assert Losses(math.nan, math.nan).scores() == {}
    assert Losses(1.0, 0.0).scores() == {}


@slow
def test_curate_scores_selects_and_limits_by_it(tiny: Path, tmp_path: Path) -> None:
    before = [one.model_copy(update={"scores": {"ifd": 9.0}}) for one in RECORDS]
    command = [str(run_folder(tmp_path / "a", before)), "--near-duplicates", "off", "--semantic-duplicates", "off"]
    command += ["--ifd", "--ifd-model", str(tiny), "--rank-by", "ifd"]
    out, best, low = tmp_path / "c", tmp_path / "best", tmp_path / "low"
    assert curate.main([*command, "--out", str(out)]) == 0
    scores = {one.id: one.scores for one in read_records(out)}
    assert len(scores) == 5
    assert all(set(found) == {"ifd", "perplexity"} and found["ifd"] < 9 for found in scores.values())
    ranked = sorted((found["ifd"] for found in scores.values()), reverse=True)

    assert curate.main([*command, "--out", str(best), "--select", "2"]) == 0
    assert {one.scores["ifd"] for one in read_records(best)} == set(ranked[:2])
    assert curate.main([*command, "--out", str(low), "--max-score", f"ifd={ranked[1]}"]) == 0
    assert {one.scores["ifd"] for one in read_records(low)} == set(ranked[1:])
    (lost,) = rejected(low).values()
    assert (lost["filter"], lost["value"], lost["threshold"]) == ("above_score", ranked[0], ranked[1])
    assert json.loads((out / "config.json").read_bytes())["settings"]["ifd"] is True
    assert not (out / "journal.sqlite").exists()


def test_what_cannot_measure_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(run_folder(tmp_path / "a", RECORDS[:1]))
    for more, said_ in (
        (["--ifd", "--ifd-model", "nowhere"], "there is no model at"),
        (["--ifd-model", "x"], "give --ifd"),
    ):
        assert curate.main([source, "--out", str(tmp_path / "c"), "--semantic-duplicates", "off", *more]) == 2
        assert said_ in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
