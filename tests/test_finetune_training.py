"""The trainer on tiny models: what breaks silently elsewhere, and the whole way from rows to a verdict.

python -m pytest tests/test_finetune_training.py                        (about two minutes)
python -m pytest tests/test_finetune_training.py -m "not slow and not model"
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune import bases, chat, evaluate, measure, run, training
from finetune import merge as merging
from finetune import rows as finetune_rows
from finetune.data import Example, read
from finetune.methods import METHODS, Recipe
from pipeline.backends import weights
from pipeline.backends.local_model import LocalModel
from pipeline.errors import UsageError
from pipeline.llm import Request
from tests.conftest import StartServer
from tests.needs_trainer import MARKS, torch
from tests.tiny_models import little_rows, save_tiny_gguf, write_rows
from tests.tiny_training import QUICK, encoded, train

pytestmark = MARKS


# ---------------------------------------------------------------- steps, packs, resume


def test_a_step_sees_as_many_records_packed_or_not(tiny: Path, tmp_path: Path) -> None:
    _, rows = encoded(tiny, little_rows(64), tmp_path)
    recipe = Recipe(batch=16, epochs=1)
    plain = training.plan(rows, recipe, 64, packing=False, device="cpu")
    packed = training.plan(rows, recipe, 64, packing=True, device="cpu")
    assert plain.steps == 4
    assert abs(packed.steps - plain.steps) <= 1
    assert packed.length == 512
    assert training.plan(rows, recipe, 64, packing=False, device="cpu", processes=2).steps == plain.steps


def test_only_what_is_learnt_is_scored_and_that_changes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    scored: list[int] = []
    head = utils._ChunkedLogProbFunction

    class Watched:
        @staticmethod
        def apply(hidden: Any, *rest: Any) -> Any:
            scored.append(len(hidden))
            return head.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Watched)
    recipe = replace(QUICK, batch=20, steps=2)
    whole: dict[str, Any] = {"watch": False, "at_once": 20, "accumulate": 1}
    _, quick = train(tiny, tmp_path, recipe, folder="quick", **whole)
    _, rows = encoded(tiny, little_rows(), tmp_path)
    assert scored == [sum(row.answer_tokens for row in rows[:20])] * 2

    monkeypatch.setattr(training, "_score_what_is_learnt", lambda: None)
    monkeypatch.setattr(utils, "_use_triton", chunked_logprob._use_triton)
    _, slow = train(tiny, tmp_path, recipe, folder="slow", **whole)
    assert scored[2] > 2 * scored[0]  # should trl one day do so by itself, this can go
    assert [loss for _, loss in quick.losses] == pytest.approx([loss for _, loss in slow.losses], abs=1e-4)


def test_accumulating_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, method="lora", steps=3)
    losses = [
        train(tiny, tmp_path, recipe, folder=f"a{at_once}", at_once=at_once, accumulate=4 // at_once)[1].losses
        for at_once in (4, 1)
    ]
    for (_, whole), (_, parts) in zip(*losses, strict=True):
        assert whole == pytest.approx(parts, abs=2e-3)  # bf16


def test_packed_rows_do_not_see_each_other(tiny: Path, tmp_path: Path) -> None:
    _, rows = encoded(tiny, little_rows(), tmp_path)
    model = bases.load_base(tiny, "bf16", "cpu").float()
    assert training.packs_stay_apart(model, rows)


def test_a_model_that_ignores_positions_is_not_packed(tiny: Path, tmp_path: Path) -> None:
    class Ignorant(torch.nn.Module):  # type: ignore[misc]
        """Reads everything in one go, whatever the positions say."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        @property
        def device(self) -> Any:
            return self.inner.device

        def forward(self, input_ids: Any, use_cache: bool, **_: Any) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    _, rows = encoded(tiny, little_rows(), tmp_path)
    model = Ignorant(bases.load_base(tiny, "bf16", "cpu").float())
    assert not training.packs_stay_apart(model, rows)
    assert training.can_pack(model, Recipe(), rows) == (False, "this model lets packed rows see each other")


@pytest.mark.parametrize("method", ["qlora", "adalora"])
def test_resuming_after_a_kill_gives_the_losses_of_an_unbroken_run(method: str, tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, method=method, steps=12)

    def killed_in_step_8(text: str) -> None:
        if text.startswith("step 8 of 12 · loss "):
            raise KeyboardInterrupt

    _, unbroken = train(tiny, tmp_path, recipe, folder="unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path, recipe, folder="broken", say=killed_in_step_8)
    said: list[str] = []
    _, resumed = train(tiny, tmp_path, recipe, folder="broken", say=said.append)
    assert "Going on from checkpoint-6" in said
    assert len(resumed.losses) == len(unbroken.losses) == 12
    for (step, loss), (same_step, same_loss) in zip(resumed.losses, unbroken.losses, strict=True):
        assert (step, loss) == (same_step, pytest.approx(same_loss, abs=1e-3))


def test_a_checkpoint_that_was_not_written_to_its_end_is_named(tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, method="adalora", steps=3)
    train(tiny, tmp_path, recipe)
    (tmp_path / "out" / "checkpoints" / "checkpoint-3" / "ranks.pt").unlink()
    with pytest.raises(UsageError, match="checkpoint-3 was not written to its end: remove it"):
        train(tiny, tmp_path, recipe)


def test_training_stops_early_and_keeps_the_best(tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, learning_rate=0.3, warmup=0.0, steps=60)  # far too fast: it gets worse soon
    trainer, result = train(tiny, tmp_path, recipe)
    losses = dict(result.watched)
    assert result.stopped_early
    assert result.steps < 60
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert result.steps > result.best_step
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[result.best_step], abs=1e-3)


def test_a_folder_begun_with_something_else_is_refused(tmp_path: Path) -> None:
    training.fingerprint(tmp_path, {"data": "a", "seed": 0})
    training.fingerprint(tmp_path, {"data": "a", "seed": 1})  # where nothing was learnt yet, nothing is refused
    (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    training.fingerprint(tmp_path, {"data": "a", "seed": 1})
    with pytest.raises(UsageError, match="seed: 1 -> 2"):
        training.fingerprint(tmp_path, {"data": "a", "seed": 2})


# ---------------------------------------------------------------- the whole way


def finetune(*arguments: object) -> int:
    return run.main([str(argument) for argument in arguments])


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"Say the number that follows {n} in letters, please!", "output": f"It is {n + 1}."}
        for n in range(12)
    ]
    return write_rows(tmp_path / "tasks.jsonl", rows)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_all_the_way(method: str, tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows()), tmp_path / "out"
    arguments = [data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 4, "--device", "cpu"]
    assert finetune(*arguments, "--method", method, "--steps", 6, "--batch", 4, "--rank", 4, "--watch", 0) == 0
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["verdict"] in ("better", "worse", "cannot tell")
    assert verdict["about_filtering"] is None  # there was no control
    assert set(verdict["arms"]) == {"base", "ours"}
    assert verdict["arms"]["ours"]["answer_loss"] != verdict["arms"]["base"]["answer_loss"]
    for name in ("README.md", "loss.png", "verdict.html", "trained.json", "tokenizer.json"):
        assert (out / name).is_file()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tiny / name).read_bytes()
    assert str(tmp_path) not in (out / "README.md").read_text()
    if not METHODS[method].merges:
        with pytest.raises(UsageError, match="puts trained tokens before the prompt, so it cannot write here"):
            weights.load(weights.find(out))
        with pytest.raises(UsageError, match="cannot be merged"):
            merging.merge(out, tmp_path / "merged", onto="dequantised", tasks=[])


def test_a_tuned_model_has_learnt_and_stops(tiny: Path, tmp_path: Path, tasks: Path) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows(8)), tmp_path / "out"
    flags = ["--steps", 80, "--batch", 8, "--rank", 32, "--learning-rate", 0.01, "--watch", 0, "--dropout", 0]
    assert finetune(data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, *flags) == 0
    tokenizer = weights.load_tokenizer(out)
    examples = read(data).examples
    *_, (name, model) = evaluate.arms(tiny, "nf4", "cpu", {"ours": out})
    assert name == "ours"
    replies = measure.write_answers(model, tokenizer, examples, stops=[tokenizer.eos_token_id], max_new_tokens=40)
    assert [reply.text for reply in replies] == [example.answer for example in examples]
    assert all(reply.stopped for reply in replies)


def test_a_run_folder_is_compared_with_a_control(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.test_finetune_data import run_folder

    folder, out = run_folder(tmp_path / "kept", kept=8, rejected=10), tmp_path / "out"
    arguments = [folder, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 2, "--json"]
    assert finetune(*arguments) == 0
    said = capfd.readouterr()
    verdict = json.loads(said.out)
    assert verdict == json.loads((out / "verdict.json").read_text())
    assert set(verdict["arms"]) == {"base", "control", "ours"}
    assert verdict["about_filtering"] == verdict["verdict"]
    assert 0 < verdict["overlap"] < 1
    assert f"Control: 8 of all candidates, kept or rejected; {verdict['overlap']:.0%}" in said.err
    assert finetune(*arguments) == 0  # all of it is done
    assert "is trained already" in capfd.readouterr().err
    assert evaluate.main([str(out), "--tasks", str(tasks), "--new-tokens", "2"]) == 0
    again = json.loads((out / "verdict.json").read_text())
    assert (again["control"], again["overlap"]) == (verdict["control"], verdict["overlap"])
    assert finetune(*arguments, "--seed", 1) == 2
    assert "seed: 0 -> 1" in capfd.readouterr().err


def test_chinese_rows_are_measured_on_chinese_tasks_then_and_later(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"第{n}盏灯是什么颜色的？", "output": "红色的。"} for n in range(8)]
    data, out = write_rows(tmp_path / "data.jsonl", [*rows, *little_rows(4)]), tmp_path / "out"
    flags = ["--new-tokens", "1", "--device", "cpu"]
    assert finetune(data, "--base", tiny, "--out", out, "--steps", 1, *flags) == 0
    assert "Held-out tasks: 40 of finetune/heldout_zh.jsonl" in capfd.readouterr().err
    verdict = json.loads((out / "verdict.json").read_text())
    assert evaluate.main([str(out), *flags]) == 0
    assert "Held-out tasks: 40 of finetune/heldout_zh.jsonl" in capfd.readouterr().err
    again = json.loads((out / "verdict.json").read_text())
    for name in ("base", "ours"):
        for what in ("answer_loss", "plain_text_loss"):
            assert again["arms"][name][what] == pytest.approx(verdict["arms"][name][what], abs=1e-6)
    assert merging.main([str(out), "--out", str(tmp_path / "merged")]) == 0
    said = capfd.readouterr().err
    assert "Held-out tasks: 40 of finetune/heldout_zh.jsonl" in said
    adapter, merged = re.findall(r"plain text ([\d.]+)", said)
    assert float(adapter) == pytest.approx(verdict["arms"]["ours"]["plain_text_loss"], abs=1e-3)
    assert float(merged) == pytest.approx(float(adapter), abs=0.1)


def test_a_control_may_be_a_file_and_must_be_as_large(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows(8)), tmp_path / "out"
    other = write_rows(tmp_path / "other.jsonl", [row | {"output": "No."} for row in little_rows(20)])
    arguments = [data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 1]
    assert finetune(*arguments, "--control", other) == 0
    verdict = json.loads((out / "verdict.json").read_text())
    assert (verdict["control"], verdict["overlap"], verdict["draws"]) == (str(other), 0.0, 1)
    assert json.loads((out / "control" / "run.json").read_text())["examples"] == 8
    few = write_rows(tmp_path / "few.jsonl", [{"instruction": "Why?", "output": "Because."}] * 3)
    assert finetune(*arguments, "--control", few) == 2
    assert "The control has 3 rows and ours 8" in capfd.readouterr().err


def test_several_draws_of_the_control_are_trained_each_by_its_own_seed(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.test_finetune_data import run_folder

    folder, out = run_folder(tmp_path / "kept", kept=8, rejected=10), tmp_path / "out"
    arguments = [folder, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 1]
    assert finetune(*arguments, "--controls", 2) == 0
    verdict = json.loads((out / "verdict.json").read_text())
    assert list(verdict["arms"]) == ["base", "ours", "control", "control 2"]
    first, second = (json.loads((out / name / "run.json").read_text()) for name in ("control", "control-2"))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["data"] != second["data"]
    capfd.readouterr()
    assert finetune(*arguments, "--controls", 3) == 0  # two are there already
    said = capfd.readouterr().err
    assert said.count("is trained already") == 3
    assert f"saved in {out / 'control-3'}" in said
    assert evaluate.main([str(out), "--tasks", str(tasks), "--new-tokens", "2"]) == 0
    again = json.loads((out / "verdict.json").read_text())
    assert (again["draws"], again["control"]) == (3, verdict["control"])
    beside = [str(out / name) for name in ("control", "control-3")]
    assert evaluate.main([str(out), "--tasks", str(tasks), "--new-tokens", "2", "--control", *beside]) == 0
    named = json.loads((out / "verdict.json").read_text())
    assert (named["draws"], named["overlap"]) == (2, None)
    assert finetune(*arguments, "--controls", 0) == 2


def test_rows_that_collide_with_the_tasks_are_left_out(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mixed = [*little_rows(), *(json.loads(line) for line in tasks.read_text().splitlines()[:3])]
    data = write_rows(tmp_path / "data.jsonl", mixed)
    assert finetune(data, "--base", tiny, "--tasks", tasks, "--plan") == 0
    said = capfd.readouterr().err
    assert "3 of the examples collide with held-out tasks and are left out" in said
    assert finetune(tasks, "--base", tiny, "--tasks", tasks, "--plan") == 2
    assert "nothing to train on" in capfd.readouterr().err


def test_tensorboard_files_are_written_where_they_are_asked_for(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows()), tmp_path / "out"
    arguments = [data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 2, "--log"]
    assert finetune(*arguments) == 0
    (events,) = (out / "log").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_prefix_tuning_and_checkpointing_do_not_go_together(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    arguments = [data, "--base", tiny, "--tasks", tasks, "--method", "prefix", "--plan"]
    assert finetune(*arguments, "--checkpointing", "on") == 2
    assert "--checkpointing on does not go with --method prefix" in capfd.readouterr().err
    assert finetune(*arguments) == 0
    assert "Note: prefix cannot be merged or exported" in capfd.readouterr().err


def test_one_row_is_enough(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", little_rows(1))
    out = tmp_path / "out"
    assert finetune(data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 1) == 0


def test_a_gguf_file_is_trained_on_saved_and_used(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTLOOP_CACHE", str(tmp_path / "cache"))
    data, out = write_rows(tmp_path / "data.jsonl", little_rows()), tmp_path / "out"
    base = save_tiny_gguf(tmp_path / "tiny.gguf")
    flags = ["--steps", 20, "--learning-rate", 0.01, "--watch", 0, "--new-tokens", 2]
    assert finetune(data, "--base", base, "--out", out, "--tasks", tasks, *flags) == 0
    losses = json.loads((out / "trained.json").read_text())["result"]["losses"]
    assert losses[-1][1] < losses[0][1] - 1
    found = weights.find(out)  # beside what the file was made into
    assert found.adapter == out
    weights.load(found)
    assert merging.merge(out, tmp_path / "merged", onto="dequantised", tasks=read(tasks).examples)["kl"] < 1e-2
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF, but not really")
    assert finetune(data, "--base", base, "--plan") == 2


def test_a_base_that_cannot_be_trained_is_refused(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    other = tmp_path / "bert"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (other / "config.json").write_text(json.dumps(config))
    assert finetune(data, "--base", other, "--plan") == 2
    assert "LlamaForSequenceClassification, which is not a causal language model" in capfd.readouterr().err
    assert finetune(data, "--base", tmp_path / "nowhere", "--plan") == 2
    assert "the path does not exist" in capfd.readouterr().err
    if not torch.cuda.is_available():
        assert finetune(data, "--base", tiny, "--plan", "--device", "cuda") == 2
        assert "torch sees no CUDA device" in capfd.readouterr().err


# ---------------------------------------------------------------- stages, and the curve


def pairs(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "No idea, ask somebody else."}
        for row in little_rows(count)
    ]


def test_preferences_are_learnt_by_dpo(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", pairs()), tmp_path / "out"
    flags = ["--stage", "dpo", "--steps", 20, "--batch", 4, "--learning-rate", 5e-3, "--watch", 0]
    assert finetune(data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, *flags) == 0
    losses = json.loads((out / "trained.json").read_text())["result"]["losses"]
    assert losses[0][1] == pytest.approx(0.693, abs=0.02)  # both answers equally likely against the base
    assert losses[-1][1] < 0.3


def test_a_reward_model_puts_the_better_answer_first(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", pairs()), tmp_path / "out"
    flags = ["--stage", "reward", "--steps", 20, "--batch", 4, "--learning-rate", 5e-3, "--watch", 0.2]
    assert finetune(data, "--base", tiny, "--out", out, "--tasks", tasks, *flags) == 0
    assert "puts the better answer first in 100% of the pairs" in capfd.readouterr().err
    assert evaluate.main([str(out), "--tasks", str(tasks)]) == 2
    assert "is a reward model" in capfd.readouterr().err
    with pytest.raises(UsageError, match="scores answers, so it cannot write here"):
        weights.load(weights.find(out))
    assert finetune(data, "--base", tiny, "--stage", "reward", "--method", "prefix", "--plan") == 2


def test_a_pair_is_rendered_as_the_model_is_asked(tiny: Path) -> None:
    from pipeline.backends.chat_template import render_chat

    tokenizer = weights.load_tokenizer(tiny)
    messages = (("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "good"))
    example = Example(messages, "", rejected="bad")
    (pair,), audit = finetune_rows.encode_pairs(tokenizer, [example], stops=[tokenizer.eos_token_id], max_length=512)
    assert pair.given == render_chat(tokenizer, messages[:-1])
    assert [tokenizer.decode(ids) for ids in (pair.chosen, pair.rejected)] == ["good<|im_end|>", "bad<|im_end|>"]
    assert audit.stopped == 1


def test_pretraining_learns_plain_documents_in_pieces(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "docs", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.md").write_text(f"# Page {number}\n" + f"A line about number {number}. " * 20)
    flags = ["--stage", "pretrain", "--max-length", 128, "--steps", 3, "--batch", 4, "--out", out]
    assert finetune(folder, "--base", tiny, "--tasks", tasks, "--new-tokens", 2, *flags) == 0
    audit = json.loads((out / "trained.json").read_text())["audit"]
    assert audit["answer_tokens"] == audit["tokens"] > 6 * 400 * 0.8
    assert audit["lengths"] == {} or audit["lengths"]["longest"] <= 128


def test_a_curve_trains_on_nested_shares(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows()), tmp_path / "out"
    flags = ["--curve", "25,50,100", "--epochs", 1, "--batch", 4, "--new-tokens", 2, "--watch", 0]
    assert finetune(data, "--base", tiny, "--out", out, "--tasks", tasks, *flags) == 0
    verdict = json.loads((out / "verdict.json").read_text())
    assert list(verdict["arms"]) == ["base", "25 %", "50 %", "ours"]
    counts = [json.loads((out / "curve" / share / "run.json").read_text())["examples"] for share in ("25", "50")]
    assert counts == [6, 12]
    assert verdict["curve"]["sentence"] in capfd.readouterr().err
    assert finetune(data, "--base", tiny, "--tasks", tasks, "--curve", "0,x", "--plan") == 2


# ---------------------------------------------------------------- afterwards


@pytest.fixture(scope="module")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learnt a little."""
    folder = tmp_path_factory.mktemp("tuned")
    data = write_rows(folder / "data.jsonl", little_rows())
    rows = [{"instruction": f"Count on from {n} {'x' * n}", "output": "It is more."} for n in range(10)]
    tasks = write_rows(folder / "tasks.jsonl", rows)
    flags = ["--steps", "40", "--learning-rate", "0.01", "--batch", "8", "--watch", "0", "--new-tokens", "2"]
    assert run.main([str(data), "--base", str(tiny), "--out", str(folder / "out"), "--tasks", str(tasks), *flags]) == 0
    return folder / "out"


def test_merging_keeps_what_was_learnt(tuned: Path, tmp_path: Path) -> None:
    tasks = [Example((("user", row["instruction"]), ("assistant", row["output"])), "") for row in little_rows(12)]
    found = merging.merge(tuned, tmp_path / "merged", onto="dequantised", tasks=tasks)
    assert found["kl"] < 1e-2
    assert (found["dtype"], list(found["kls"])) == ("bfloat16", ["bfloat16"])
    exact = merging.merge(tuned, tmp_path / "exact", onto="dequantised", tasks=tasks, dtype="float32")
    assert exact["kl"] < found["kl"]
    assert json.loads((tmp_path / "exact" / "config.json").read_text())["dtype"] == "float32"
    assert found["merged"]["answer_loss"] == pytest.approx(found["adapter"]["answer_loss"], abs=0.02)
    other = merging.merge(tuned, tmp_path / "original", onto="original", tasks=tasks)
    assert other["kl"] > found["kl"]  # it was not made for that base
    merged = tmp_path / "merged"
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (tuned / name).read_bytes()
    modelfile = (merged / "Modelfile").read_text()
    assert modelfile.startswith("FROM .\n")
    assert "<|im_start|>" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    with pytest.raises(UsageError, match="exists already"):
        merging.merge(tuned, merged, onto="dequantised", tasks=tasks)


def test_a_merge_that_rounding_takes_too_far_is_written_in_fp32(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = read(tuned.parent / "tasks.jsonl").examples
    in_bf16 = merging.merge(tuned, tmp_path / "a", onto="dequantised", tasks=tasks, dtype="bfloat16")
    monkeypatch.setattr(merging, "FURTHEST", in_bf16["kl"] * 0.99)
    found = merging.merge(tuned, tmp_path / "b", onto="dequantised", tasks=tasks)
    assert found["dtype"] == "float32"
    assert found["kl"] < found["kls"]["bfloat16"] == in_bf16["kl"]
    assert f"in bfloat16 it would be {in_bf16['kl']:.4f}" in "\n".join(merging.describe(found))
    with pytest.raises(UsageError, match="there is no such folder"):
        merging.merge(tmp_path / "nowhere", tmp_path / "c", onto="dequantised", tasks=tasks)


async def test_the_merged_model_and_the_adapter_answer_in_process(tuned: Path, tmp_path: Path) -> None:
    merging.merge(tuned, tmp_path / "merged", onto="dequantised", tasks=read(tuned.parent / "tasks.jsonl").examples)
    answers = []
    for folder in (tmp_path / "merged", tuned):
        model = LocalModel.from_directory(folder)
        try:
            answers.append(await model.complete(Request((("user", "Colour of car 0?"),), 24, temperature=0.0)))
        finally:
            await model.close()
    assert [answer.finish_reason for answer in answers] == ["stop", "stop"]
    assert answers[0].text.startswith("It is")


def test_an_adapter_is_no_base(tuned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert finetune(tuned.parent / "data.jsonl", "--base", tuned, "--plan") == 2
    assert "is an adapter: merge it first" in capfd.readouterr().err


def test_evaluating_again_gives_the_same_verdict(tuned: Path, tmp_path: Path) -> None:
    before = json.loads((tuned / "verdict.json").read_text())
    assert evaluate.main([str(tuned), "--tasks", str(tuned.parent / "tasks.jsonl"), "--new-tokens", "2"]) == 0
    after = json.loads((tuned / "verdict.json").read_text())
    assert after["difference_nats"] == pytest.approx(before["difference_nats"], abs=1e-4)
    assert after["verdict"] == before["verdict"]


def test_a_judge_reads_the_answers_within_its_budget(
    tuned: Path, start_server: StartServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server = start_server()
    flags = ["--tasks", tuned.parent / "tasks.jsonl", "--new-tokens", 8, "--judge-model", "j"]
    flags += ["--judge-base-url", server.base_url]
    command = [str(argument) for argument in (tuned, *flags)]
    assert evaluate.main([*command, "--max-requests", "6"]) == 4
    said = capfd.readouterr().err
    assert "--max-requests 6 is reached" in said
    verdict = json.loads((tuned / "verdict.json").read_text())
    assert verdict["judge"]["judged"] < 10
    assert len(server.ledger()) == 6

    assert evaluate.main([*command, "--json"]) == 0
    verdict = json.loads(capfd.readouterr().out)
    assert (verdict["judge"]["judged"] + verdict["judge"]["alike"], verdict["judge"]["against"]) == (10, "base")
    page = (tuned / "verdict.html").read_text()
    assert verdict["judge"]["sentence"] in page
    sent = len(server.ledger())
    assert 6 < sent <= 20
    assert evaluate.main(command) == 0
    assert len(server.ledger()) == sent


def test_a_judge_without_its_key_is_refused_before_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    assert finetune(data, "--base", tiny, "--judge-model", "j", "--judge-base-url", "https://api.example.org/v1") == 2
    assert "needs a key: set OPENAI_API_KEY" in capfd.readouterr().err


def test_chat_answers_and_forgets(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Colour of car 0?\n/new\nColour of car 0?\n\n"))
    assert chat.main([str(tuned), "--new-tokens", "24"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def launched(count: int, *arguments: object, port: int) -> subprocess.CompletedProcess[str]:
    """The command in several processes of its own; without --device cpu each would take a GPU."""
    # accelerate's --cpu starts one process alone; with --multi_gpu it starts several.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", count, "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--num_machines", "1", "-m", "finetune.run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    command = [sys.executable, *map(str, [*launch, *arguments, "--device", "cpu"])]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_two_processes_train_as_one(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows()), tmp_path / "out"
    flags = ["--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 3, "--batch", 4]
    done = launched(2, data, *flags, port=29511)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Rows: ") == 1  # one of them speaks
    assert json.loads((out / "run.json").read_text())["processes"] == 2
    assert (out / "verdict.json").is_file()


def test_two_processes_measure_a_reward_model_together(tiny: Path, tmp_path: Path) -> None:
    """The one that writes must not ask alone: the other would be gone, and it would wait for ever."""
    data, out = write_rows(tmp_path / "pairs.jsonl", pairs()), tmp_path / "out"
    flags = ["--stage", "reward", "--base", tiny, "--out", out, "--steps", 2, "--batch", 4, "--watch", 0.2]
    done = launched(2, data, *flags, port=29512)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 <= json.loads((out / "trained.json").read_text())["accuracy"] <= 1


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    """With SIGKILL, in a process of its own, by the command that a user types."""
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    flags = ["--base", tiny, "--tasks", tasks, "--new-tokens", 2, "--steps", 12, "--batch", 4, "--learning-rate", 3e-3]
    command = [sys.executable, "-m", "finetune.run", *map(str, [data, *flags, "--out", tmp_path / "killed"])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 9 of 12 · loss "):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "trained.json").exists()
    for name in ("killed", "unbroken"):
        assert finetune(data, *flags, "--out", tmp_path / name) == 0
    resumed, unbroken = (
        json.loads((tmp_path / name / "trained.json").read_text())["result"]["losses"]
        for name in ("killed", "unbroken")
    )
    assert len(unbroken) == 12
    assert resumed == [[step, pytest.approx(loss, abs=1e-3)] for step, loss in unbroken]


def test_the_same_command_gives_the_same_adapter(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    found = set()
    for name in ("a", "b"):
        flags = ["--base", tiny, "--out", tmp_path / name, "--tasks", tasks, "--new-tokens", 2, "--steps", 3]
        assert finetune(data, *flags) == 0
        found.add(hashlib.sha256((tmp_path / name / "adapter_model.safetensors").read_bytes()).hexdigest())
    assert len(found) == 1
