"""The trainer on tiny models: what breaks silently elsewhere, and the whole way from rows to a verdict.

python -m pytest tests/test_finetune_training.py                        (about two minutes)
python -m pytest tests/test_finetune_training.py -m "not slow and not model"
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

for name in ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes"):
    pytest.importorskip(name, reason="the trainer needs the extra: pip install -e .[local,train]")

from finetune import estimate, evaluate, measure, methods, run, training  # noqa: E402
from finetune import merge as merging  # noqa: E402
from finetune import rows as finetune_rows  # noqa: E402
from finetune.data import Example, read  # noqa: E402
from finetune.methods import METHODS, PRESETS, Recipe  # noqa: E402
from pipeline.backends import weights  # noqa: E402
from pipeline.backends.local_model import LocalModel  # noqa: E402
from pipeline.errors import UsageError  # noqa: E402
from pipeline.llm import Request  # noqa: E402
from tests.conftest import StartServer  # noqa: E402
from tests.tiny_models import little_rows, save_tiny, write_rows  # noqa: E402

methods.prepare()
import torch  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # minutes of training, if of tiny models
    pytest.mark.filterwarnings("default"),  # what the libraries deprecate among themselves is theirs
]
QUICK = Recipe(rank=4, alpha=8, dropout=0.0, learning_rate=3e-3, batch=4, steps=4, packing=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _two_threads_at_most(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def encoded(base: Path, rows: list[dict[str, Any]], tmp_path: Path) -> tuple[Any, list[Any]]:
    tokenizer = weights.load_tokenizer(base)
    examples = read(write_rows(tmp_path / "rows.jsonl", rows)).examples
    found, _ = finetune_rows.encode(tokenizer, examples, stops=finetune_rows.stop_ids(tokenizer))
    return tokenizer, found


def train(
    base: Path,
    tmp_path: Path,
    recipe: Recipe = QUICK,
    *,
    folder: str = "out",
    say: Any = None,
    watch: bool = True,
    **changed: Any,
) -> Any:
    """(trainer, result) of a small run."""
    tokenizer, rows = encoded(base, little_rows(), tmp_path)
    packing = changed.pop("packing", False)
    batches = training.plan(rows, recipe, 64, packing=packing, device="cpu")
    batches = replace(batches, **changed)
    model = methods.load_base(base, recipe.precision, "cpu")
    setup = training.Setup(tmp_path / folder, "cpu", 0, packing=packing)
    watched = rows[20:] if watch else []
    return training.train(model, tokenizer, rows[:20], watched, recipe, batches, setup, say or (lambda text: None))


# ---------------------------------------------------------------- quantisation, and the guard


def test_the_base_is_quantised_as_published(tiny: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    model = methods.load_base(tiny, "nf4", "cpu")
    quantised = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(quantised) == 2 * 7  # every linear layer of both blocks, and not the head
    for module in quantised:
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, module.compute_dtype) == ("nf4", True, torch.bfloat16)


def gradients(model: Any, ids: list[int]) -> Any:
    model.train()
    model.zero_grad()
    batch = torch.tensor([ids])
    model(input_ids=batch, labels=batch).loss.backward()
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad and p.grad is not None])


def agreement_after_an_evaluation(base: Path, *, guarded: bool) -> float:
    """Cosine between the gradients before and after the model was used for inference."""
    import peft

    model = methods.load_base(base, "nf4", "cpu")
    for module in model.modules():
        if not guarded and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    torch.manual_seed(0)
    model = peft.get_peft_model(model, methods.adapter_config(replace(QUICK, rank=8), model, 10))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)  # as after some steps; at 0 no gradient reaches lora_A
    ids = list(range(40, 90))
    before = gradients(model, ids)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    return float(torch.nn.functional.cosine_similarity(before, gradients(model, ids), dim=0))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for the kernel that goes wrong."""
    return save_tiny(tmp_path_factory.mktemp("wide"), layers=3, hidden=128)


def test_gradients_are_the_same_before_and_after_an_evaluation(wide: Path) -> None:
    assert agreement_after_an_evaluation(wide, guarded=True) > 0.99


def test_without_the_guard_they_are_not(wide: Path) -> None:
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so the bug does not show here")
    assert agreement_after_an_evaluation(wide, guarded=False) < 0.95  # once it is above, the guard can go


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
    model = methods.load_base(tiny, "bf16", "cpu").float()
    assert training.packs_stay_apart(model, rows)


def test_a_model_that_ignores_positions_is_not_packed(tiny: Path, tmp_path: Path) -> None:
    class Ignorant(torch.nn.Module):  # type: ignore[misc]
        """Reads everything in one go, whatever the positions say."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        @property
        def device(self) -> Any:
            return self.inner.device

        def forward(self, input_ids: Any, position_ids: Any, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    _, rows = encoded(tiny, little_rows(), tmp_path)
    model = Ignorant(methods.load_base(tiny, "bf16", "cpu").float())
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
    training.fingerprint(tmp_path, {"data": "a", "seed": 1})
    training.fingerprint(tmp_path, {"data": "a", "seed": 1})
    with pytest.raises(UsageError, match="seed: 1 -> 2"):
        training.fingerprint(tmp_path, {"data": "a", "seed": 2})


# ---------------------------------------------------------------- AdaLoRA, and soft prompts


def logits(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits.float()


@pytest.mark.parametrize("watch", [True, False])
def test_adalora_prunes_ranks_and_is_the_same_when_it_is_read_again(watch: bool, tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, method="adalora", rank=8, steps=10)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer, result = train(tiny, tmp_path, recipe, watch=watch)
        trainer.model.save_pretrained(tmp_path / "saved")
        *_, (_, again) = evaluate.arms(tiny, "bf16", "cpu", {"ours": tmp_path / "saved"})
    ranks = [side for name, side in trainer.model.named_parameters() if "lora_E" in name]
    left = sum(int(side.count_nonzero()) for side in ranks)
    if watch:  # the best checkpoint was read back, from whatever stage of the pruning
        assert result.best_step
        assert left >= len(ranks) * recipe.rank // 2
    else:
        assert left == len(ranks) * recipe.rank // 2
    ids, trained = list(range(40, 90)), trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    assert torch.equal(logits(again.float(), ids), logits(trained.float(), ids))
    assert [str(entry.message) for entry in warned if "Adapter" in str(entry.message)] == []
    assert [str(entry.message) for entry in warned if "rank_pattern" in str(entry.message)] == []


def test_adaloras_penalty_is_the_one_that_peft_adds_to_its_own_loss(tiny: Path) -> None:
    import peft

    model = methods.load_base(tiny, "bf16", "cpu")
    recipe = replace(QUICK, method="adalora")
    model = peft.get_peft_model(model, methods.adapter_config(recipe, model, 10))
    ids = list(range(40, 90))
    both = gradients(model, ids)
    weight, model.active_peft_config.orth_reg_weight = model.active_peft_config.orth_reg_weight, 0.0
    without = gradients(model, ids)
    model.active_peft_config.orth_reg_weight = weight
    training._allocate_ranks().on_pre_optimizer_step(None, None, None, model=model)
    ours = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])
    assert float((both - without).norm()) > 0.01
    assert torch.allclose(ours, both, atol=1e-5)


@pytest.mark.parametrize("method", ["prefix", "prompt", "ptuning", "adalora"])
def test_a_method_may_stand_on_a_base_in_4_bits(method: str, tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, method=method, four_bit=True, learning_rate=None, steps=8)
    trainer, result = train(tiny, tmp_path, recipe)
    assert trainer.model.get_base_model().is_loaded_in_4bit
    assert result.watched[-1][1] < result.watched[0][1]
    trainer.model.save_pretrained(tmp_path / "saved")
    *_, (_, again) = evaluate.arms(tiny, recipe.precision, "cpu", {"ours": tmp_path / "saved"})
    ids = list(range(40, 90))
    assert torch.allclose(logits(again, ids), logits(trainer.model, ids), atol=0.05)  # bf16, as it was trained


def test_what_cannot_be_trained_in_4_bits_is_said_before(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights in 4 bits cannot be trained"):
        recipe_of("--method", "full", "--four-bit")
    with pytest.raises(UsageError, match="take lora"):
        recipe_of("--no-four-bit")
    assert recipe_of("--method", "dora", "--no-four-bit").precision == "bf16"
    assert recipe_of("--method", "prefix", "--four-bit").precision == "nf4"


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_soft_prompt_writes_the_same_alone_and_among_others(method: str, tiny: Path, tmp_path: Path) -> None:
    recipe = replace(QUICK, method=method, learning_rate=3e-2, steps=10)
    trainer, _ = train(tiny, tmp_path, recipe)
    tokenizer, tasks = weights.load_tokenizer(tiny), read(tmp_path / "rows.jsonl").examples[:12]
    lengths = {len(task.question) for task in tasks}
    assert len(lengths) > 1  # else nothing would be padded
    settings: dict[str, Any] = {"stops": [tokenizer.eos_token_id], "max_new_tokens": 8}
    model = trainer.model.float().eval()
    together = measure.write_answers(model, tokenizer, tasks, **settings)
    alone = [measure.write_answers(model, tokenizer, [task], **settings)[0] for task in tasks]
    assert together == alone


# ---------------------------------------------------------------- recipes


def recipe_of(*flags: str) -> Recipe:
    return run.recipe_of(run._parse(["x.jsonl", *flags]))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_published_numbers_and_flags_win(name: str) -> None:
    preset = recipe_of("--preset", name)
    for key, value in PRESETS[name].numbers.items():
        assert getattr(preset, key) == value
    assert PRESETS[name].source
    assert recipe_of("--preset", name, "--learning-rate", "0.5").rate == 0.5


def test_the_learning_rate_is_the_methods_own() -> None:
    assert recipe_of().rate == 2e-4  # the library's default, 2e-5, is for full fine-tunes
    assert recipe_of("--method", "full").rate == 2e-5
    assert recipe_of("--rank", "64").alpha == 128
    assert recipe_of("--preset", "guanaco", "--epochs", "2").steps is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--batch", "0"], "--batch is 0"), (["--rank", "-1"], "--rank is -1"), (["--watch", "1"], "--watch is 1.0")],
)
def test_numbers_that_make_no_sense_are_refused(flags: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_of(*flags)


def test_arguments_reach_the_trainer(tmp_path: Path) -> None:
    recipe = recipe_of("--preset", "guanaco", "--neftune", "5", "--rslora")
    batches = training.Batches(64, 2, 3, 100)
    made = training._arguments(recipe, batches, training.Setup(tmp_path, "cpu", 7, checkpointing=True), watch=True)
    found = (made.learning_rate, made.max_grad_norm, made.neftune_noise_alpha, made.seed, made.warmup_steps)
    assert found == (2e-4, 0.3, 5.0, 7, 0.03)
    assert (made.lr_scheduler_type, made.train_sampling_strategy) == ("constant_with_warmup", "group_by_length")
    assert (made.optim, made.gradient_checkpointing, made.packing) == ("paged_adamw_32bit", True, False)
    assert (made.report_to, made.push_to_hub) == ([], False)


# ---------------------------------------------------------------- the estimate


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_weights_and_adapter_are_counted_right(wide: Path, method: str) -> None:
    import peft

    recipe = replace(QUICK, method=method, rank=8)
    model = methods.load_base(wide, recipe.precision, "cpu")
    held = model.get_memory_footprint()
    found = estimate.estimate(
        estimate.shape_of(methods.require_causal(wide)), recipe, 100, checkpointing=False, device="cpu"
    )
    assert found.weights == pytest.approx(held, rel=0.05)
    if method != "full":
        tuned = peft.get_peft_model(model, methods.adapter_config(recipe, model, 10))
        trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
        assert found.adapter == trained * (8 if method == "qlora" else 16)


def test_what_does_not_fit_is_refused_with_what_would(wide: Path) -> None:
    shape, recipe = estimate.shape_of(methods.require_causal(wide)), replace(QUICK, method="lora")
    settings: dict[str, Any] = {"checkpointing": False, "device": "cpu"}
    found = estimate.estimate(shape, recipe, 500_000, **settings)
    with pytest.raises(UsageError, match=r"needs about .* GB .*: --checkpointing on would take"):
        estimate.require_room(found, shape, recipe, 500_000, free=found.total * 0.9, **settings)
    with pytest.raises(UsageError, match="take a smaller --base"):
        estimate.require_room(found, shape, recipe, 500_000, free=1e6, **settings)
    estimate.require_room(found, shape, recipe, 500_000, free=found.total * 2, **settings)
    less = estimate.estimate(shape, recipe, 500_000, checkpointing=True, device="cpu")
    assert less.activations < found.activations


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
    flags = ["--steps", 150, "--batch", 8, "--rank", 32, "--learning-rate", 0.01, "--watch", 0, "--dropout", 0]
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


def test_a_control_may_be_a_file_and_must_be_as_large(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows(8)), tmp_path / "out"
    other = write_rows(tmp_path / "other.jsonl", [row | {"output": "No."} for row in little_rows(20)])
    arguments = [data, "--base", tiny, "--out", out, "--tasks", tasks, "--new-tokens", 2, "--steps", 1]
    assert finetune(*arguments, "--control", other) == 0
    verdict = json.loads((out / "verdict.json").read_text())
    assert (verdict["control"], verdict["overlap"]) == (str(other), 0.0)
    assert json.loads((out / "control" / "run.json").read_text())["examples"] == 8
    few = write_rows(tmp_path / "few.jsonl", [{"instruction": "Why?", "output": "Because."}] * 3)
    assert finetune(*arguments, "--control", few) == 2
    assert "The control has 3 rows and ours 8" in capfd.readouterr().err


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
    assert (verdict["judge"]["judged"], verdict["judge"]["against"]) == (10, "base")
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


def test_chat_answers_and_forgets(tuned: Path) -> None:
    command = [sys.executable, "-m", "finetune.chat", str(tuned), "--new-tokens", "24"]
    done = subprocess.run(
        command, input="Colour of car 0?\n/new\nColour of car 0?\n\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second


@pytest.mark.slow
def test_two_processes_train_as_one(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", little_rows()), tmp_path / "out"
    # Its --cpu starts one process alone; with --multi_gpu it starts several, and --device cpu keeps them off any GPU.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1", "-m", "finetune.run"]
    flags = [
        "--base",
        tiny,
        "--out",
        out,
        "--tasks",
        tasks,
        "--new-tokens",
        2,
        "--steps",
        3,
        "--batch",
        4,
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29511"}
    done = subprocess.run(
        [*map(str, [*launch, data, *flags])], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Rows: ") == 1  # one of them speaks
    assert json.loads((out / "run.json").read_text())["processes"] == 2
    assert (out / "verdict.json").is_file()


def test_the_same_command_gives_the_same_adapter(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    found = set()
    for name in ("a", "b"):
        flags = ["--base", tiny, "--out", tmp_path / name, "--tasks", tasks, "--new-tokens", 2, "--steps", 3]
        assert finetune(data, *flags) == 0
        found.add(hashlib.sha256((tmp_path / name / "adapter_model.safetensors").read_bytes()).hexdigest())
    assert len(found) == 1
