"""What is measured of a model is what the model says: losses of padded batches, prose, Chinese; and what is told.

python -m pytest tests/test_finetune_measure.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune import bases, card, measure, methods, run
from finetune.data import Example
from finetune.methods import METHODS, PRESETS, Recipe
from pipeline.backends import weights
from tests.needs_trainer import MARKS, torch
from tests.tiny_models import letters, little_rows, save_tiny, write_rows
from tests.tiny_training import encoded

pytestmark = MARKS


def test_a_rows_loss_is_the_librarys_own_whatever_it_is_read_with(tiny: Path, tmp_path: Path) -> None:
    _, rows = encoded(tiny, [*little_rows(5), {"instruction": "Count " * 9, "output": "One, two, three."}], tmp_path)
    model = bases.load_base(tiny, "fp32", "cpu").eval()
    assert len({row.length for row in rows}) > 1  # else nothing would be padded
    for row, found in zip(rows, measure.answer_losses(model, rows), strict=True):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert found.tokens == row.answer_tokens
        assert found.nats / found.tokens == pytest.approx(float(own), abs=1e-4)


def test_forgetting_is_the_loss_on_prose_paragraph_by_paragraph(tiny: Path, tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("It rained.\n\nThe hens stayed in, and the cat with them.\n", encoding="utf-8")
    model, tokenizer = bases.load_base(tiny, "fp32", "cpu").eval(), weights.load_tokenizer(tiny)
    nats = count = 0.0
    for text in prose.read_text(encoding="utf-8").strip().split("\n\n"):
        ids = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_token_id]])
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert measure.plain_text_loss(model, tokenizer, prose) == pytest.approx(nats / count, abs=1e-4)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # a model that forgot
    assert measure.plain_text_loss(model, tokenizer, prose) > nats / count + 0.1


def test_chinese_answers_have_bleu_by_characters() -> None:
    tasks = [Example((("user", "首都是哪里?"), ("assistant", "中国的首都是北京。")), "")] * 2
    alike = measure.scores(
        tasks, [measure.Reply("中国的首都是北京。", 9, True), measure.Reply("首都是北京。", 6, True)]
    )
    assert "tok:zh" in alike["bleu_signature"]
    assert 40 < alike["bleu"] < 100  # cut at blanks, the second would share no word


# ---------------------------------------------------------------- what is told, and what is written


@pytest.mark.parametrize("what", ["method", "preset"])
def test_what_there_is_to_choose_from_is_listed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([f"--{what}", "list"]) == 0
    said = capsys.readouterr().out
    for name in METHODS if what == "method" else PRESETS:
        assert f"\n{name} " in f"\n{said}"
    if what == "preset":
        assert all(preset.source in said and preset.unverified in said for preset in PRESETS.values())


def test_the_source_of_a_preset_the_time_and_the_speed_are_said(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", little_rows())
    tasks = write_rows(tmp_path / "tasks.jsonl", [{"instruction": "Say it, will you?", "output": "It."}])
    out = tmp_path / "out"
    flags = ["--preset", "lima", "--steps", "2", "--new-tokens", "2", "--watch", "0", "--out", str(out)]
    assert run.main([str(data), "--base", str(tiny), "--tasks", str(tasks), *flags]) == 0
    said = capfd.readouterr().err
    assert f"Preset lima: {PRESETS['lima'].source}; {PRESETS['lima'].unverified}" in said
    assert "Time: about" in said
    assert "step 2 of 2 · loss" in said
    assert " tokens/s" in said.partition("step 2 of 2")[2].split("\n")[0]
    noted, page = json.loads((out / "run.json").read_text()), (out / "README.md").read_text(encoding="utf-8")
    assert noted["data"] in page
    assert json.loads((out / "verdict.json").read_text())["sentence"] in page
    assert "library_name: transformers" in page  # a whole model; an adapter says peft


def test_every_token_that_ends_a_reply_is_noted_for_others(tmp_path: Path) -> None:
    """The template may end answers with another token than the tokenizer's own: both stop a reply elsewhere, too."""
    base = save_tiny(tmp_path / "base")
    tokenizer = letters()
    ends = tokenizer.eos_token_id
    tokenizer.add_special_tokens({"eos_token": "<|im_start|>"})  # another one of its own
    tokenizer.save_pretrained(base)
    data = write_rows(tmp_path / "data.jsonl", little_rows(6))
    tasks = write_rows(tmp_path / "tasks.jsonl", [{"instruction": "Say it, will you?", "output": "It."}])
    flags = ["--steps", "1", "--new-tokens", "2", "--watch", "0", "--out", str(tmp_path / "out")]
    assert run.main([str(data), "--base", str(base), "--tasks", str(tasks), *flags]) == 0
    noted = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert noted == sorted([ends, tokenizer.eos_token_id])
    audit = json.loads((tmp_path / "out" / "trained.json").read_text())["audit"]
    assert (audit["stopped"], audit["stop_appended"]) == (6, 0)


def test_the_commands_for_other_programs_name_what_was_made(tmp_path: Path) -> None:
    adapter = tmp_path / "mine-tuned"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 64}')
    said = "\n".join(card.commands(tmp_path / "mine-merged", adapter, "maker/base"))
    assert f"convert_hf_to_gguf.py {tmp_path}/mine-merged --outtype q8_0 --outfile mine-merged.gguf" in said
    assert f"ollama create mine-merged -f {tmp_path}/mine-merged/Modelfile" in said
    assert f"vllm serve {tmp_path}/mine-merged" in said
    lora = f"--enable-lora --max-lora-rank 64 --lora-modules mine-tuned={adapter}"
    assert f"vllm serve maker/base {lora}" in said


def test_what_an_adapter_is_made_of_reaches_it(tiny: Path) -> None:
    model = bases.load_base(tiny, "bf16", "cpu")
    plain = methods.adapter_config(Recipe(rank=8, alpha=4.0, dropout=0.1), model, 10)
    assert (plain.r, plain.lora_alpha, plain.lora_dropout, plain.target_modules) == (8, 4.0, 0.1, "all-linear")
    assert (plain.use_rslora, plain.use_dora) == (False, False)
    assert methods.adapter_config(Recipe(rslora=True), model, 10).use_rslora
    assert methods.adapter_config(Recipe(method="dora"), model, 10).use_dora
    assert methods.adapter_config(Recipe(method="adalora", rank=8), model, 10).target_r == 4
    for method in ("prefix", "prompt", "ptuning"):
        assert methods.adapter_config(Recipe(method=method, virtual_tokens=5), model, 10).num_virtual_tokens == 5
    assert methods.adapter_config(Recipe(method="full"), model, 10) is None


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    bases.prepare()
    assert torch.get_num_threads() == 3
