"""What a user may get wrong with the trainer, and what looks right and is not: a sentence, a code, nothing broken.

python -m pytest tests/test_finetune_mistakes.py        (under a minute)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import bases, chat, evaluate, run, training
from finetune import merge as merging
from finetune.methods import Recipe
from pipeline.run_folder import locked
from tests.needs_trainer import MARKS, torch
from tests.tiny_models import letters, little_rows, write_rows
from tests.tiny_training import encoded

pytestmark = MARKS

Said = Callable[..., str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data.jsonl", little_rows())


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [{"instruction": f"Say the number that follows {n}, please!", "output": f"It is {n + 1}."} for n in range(3)]
    return write_rows(tmp_path / "tasks.jsonl", rows)


@pytest.fixture
def refused(data: Path, tasks: Path, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Said:
    """`refused("--steps", 1)`: the last line of a command that ends with 2, or the code that is wanted."""

    def refused_(*flags: object, base: Path = tiny, code: int = 2) -> str:
        given = ["--base", base, "--tasks", tasks, "--new-tokens", 2, "--steps", 1, "--out", tmp_path / "out", *flags]
        capfd.readouterr()
        assert run.main([str(argument) for argument in (data, *given)]) == code
        return capfd.readouterr().err.strip().splitlines()[-1]

    return refused_


def changed(base: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model whose configuration says something else."""
    shutil.copytree(base, folder)
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(known | config), encoding="utf-8")
    return folder


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--learning-rate", "nan"), "--learning-rate is nan"),
        (("--learning-rate", "0"), "--learning-rate is 0.0"),
        (("--epochs", "inf"), "--epochs is inf"),
        (("--steps", "-4"), "--steps is -4"),
        (("--batch", "0"), "--batch is 0"),
        (("--rank", "-1"), "--rank is -1"),
        (("--alpha", "nan"), "--alpha is nan"),
        (("--dropout", "1"), "--dropout is 1.0"),
        (("--neftune", "-1"), "--neftune is -1.0"),
        (("--max-length", "0"), "--max-length is 0"),
        (("--watch", "0.9"), "--watch is 0.9"),
        (("--watch", "nan"), "--watch is nan"),
        (("--seed", "-1"), "--seed is -1"),
        (("--controls", "0"), "--controls is 0"),
        (("--controls", "2", "--control", "none"), "--controls 2 does not go with --control none"),
        (("--controls", "2", "--stage", "dpo"), "--controls is for --stage sft"),
        (("--judge-max-tokens", "800"), "are a judge's: name it by --judge-model"),
        (("--max-requests", "5"), "name it by --judge-model"),
        (("--judge-model", "j", "--max-requests", "-1"), "--max-requests is -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_their_flag(flags: tuple[str, ...], said: str, refused: Said) -> None:
    assert said in refused(*flags)


@pytest.mark.parametrize("command", [run.main, evaluate.main, chat.main])
def test_an_answer_needs_at_least_one_token(
    command: Callable[[list[str]], int], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(["x", "--new-tokens", "0"])
    assert stopped.value.code == 2
    assert "--new-tokens: 0, and must be above 0" in capfd.readouterr().err


@pytest.mark.parametrize("watch", ["0", "0.2"])
def test_a_loss_that_is_no_number_ends_the_run(watch: str, tmp_path: Path, refused: Said) -> None:
    said = refused("--method", "full", "--learning-rate", "1e30", "--steps", "8", "--watch", watch)
    assert "the loss is no number any more" in said
    assert "lower --learning-rate than 1e+30" in said
    assert not (tmp_path / "out" / "trained.json").exists()


# ---------------------------------------------------------------- folders


def test_a_folder_that_holds_something_else_is_left_as_it_is(tiny: Path, tmp_path: Path, refused: Said) -> None:
    base = changed(tiny, tmp_path / "base")
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    for method in ("qlora", "full"):
        assert "holds something else (chat_template" in refused("--out", base, "--method", method, base=base)
    assert {file.name: file.read_bytes() for file in base.iterdir() if file.name != ".lock"} == before


def test_a_place_that_cannot_be_written_is_said(data: Path, refused: Said) -> None:
    assert "a file stands there" in refused("--out", data)
    assert "cannot be written" in refused("--out", "/proc/nowhere/out", code=6)


def test_a_folder_in_use_is_said(tmp_path: Path, refused: Said) -> None:
    with locked(tmp_path / "out"):
        assert "in use by process" in refused(code=75)


def test_a_damaged_note_is_said(tmp_path: Path, refused: Said) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"data": ')
    assert "run.json is damaged" in refused()


def test_an_interrupted_curve_goes_on(tmp_path: Path) -> None:
    training.fingerprint(tmp_path / "curve" / "50", {"data": "a"})
    training.fingerprint(tmp_path, {"data": "b"})  # only its curve was begun
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"data": "b"}


# ---------------------------------------------------------------- bases


def test_a_base_that_is_not_whole_is_refused(tiny: Path, tmp_path: Path, refused: Said) -> None:
    deeper = changed(tiny, tmp_path / "deeper", num_hidden_layers=3)
    for method in ("qlora", "lora"):  # transformers would fill the gap with random numbers
        assert "is incomplete: 9 weights are missing" in refused("--method", method, base=deeper)
    cut = changed(tiny, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1000])
    assert "cut cannot be loaded" in refused(base=cut)
    wider = changed(tiny, tmp_path / "wider", hidden_size=128)
    assert "its weights are of other sizes than its config.json says" in refused("--method", "lora", base=wider)


def test_a_base_that_does_not_go_on_writing_is_refused(tiny: Path, tmp_path: Path, refused: Said) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "bert": {"model_type": "bert", "architectures": ["BertLMHeadModel"]},  # reads both ways: no is_decoder
        "nameless": {"model_type": "bert", "architectures": None},
        "sees": {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
    }
    for name, config in kinds.items():
        assert "which is not a causal language model" in refused(base=changed(tiny, tmp_path / name, **config))


def test_a_models_own_code_is_not_run(tiny: Path, tmp_path: Path, refused: Said) -> None:
    own = changed(tiny, tmp_path / "own", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (own / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    assert "custom code" in refused(base=own)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_quantised_already_take_a_method_for_4_bits(tiny: Path, tmp_path: Path, refused: Said) -> None:
    quantised = tmp_path / "quantised"
    bases.load_base(tiny, "nf4", "cpu").save_pretrained(quantised)
    letters().save_pretrained(quantised)
    assert "holds quantised weights: take --method qlora" in refused("--method", "lora", base=quantised)
    refused("--method", "qlora", base=quantised, code=0)


def save(folder: Path, config: Any) -> Path:
    """A model of random weights of any make-up."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


def test_a_model_that_knows_few_positions_is_packed_all_the_same(tmp_path: Path, refused: Said) -> None:
    from transformers import GPT2Config

    tokenizer = letters()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=80, **ends)
    base = save(tmp_path / "gpt2", config)
    refused("--watch", 0, base=base, code=0)
    assert json.loads((tmp_path / "out" / "trained.json").read_text())["result"]["packed"]
    assert "than the 80 tokens that the model reads" in refused("--new-tokens", 48, base=base)


def test_layers_that_cannot_keep_packs_apart_are_not_given_any(tmp_path: Path) -> None:
    """Convolutions look a few tokens back; the trainer would stop at them."""
    from transformers import Lfm2Config

    config = Lfm2Config(
        vocab_size=len(letters()), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, full_attn_idxs=[1],
    )  # fmt: skip
    base = save(tmp_path / "mixed", config)
    _, rows = encoded(base, little_rows(), tmp_path)
    packed, why_not = training.can_pack(bases.load_base(base, "bf16", "cpu"), Recipe(), rows)
    assert not packed
    assert "keep packed sequences apart" in why_not or "see each other" in why_not


def test_layers_that_take_no_adapter_are_said(tmp_path: Path, refused: Said) -> None:
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=len(letters()), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
    )  # fmt: skip
    base = save(tmp_path / "experts", config)
    assert "Try --dropout 0." in refused(base=base)


# ---------------------------------------------------------------- data, tasks and controls


def test_what_is_repeated_and_what_is_not_watched_is_said(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "same.jsonl", little_rows(1) * 40)
    assert run.main([str(data), "--base", str(tiny), "--tasks", str(tasks), "--plan"]) == 0
    said = capfd.readouterr().err
    assert "39 of them say the same as another" in said
    assert "Too few documents, subjects or clusters to watch any" in said


def test_tasks_that_cannot_be_asked_are_found_before_anything_is_trained(tmp_path: Path, refused: Said) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"instruction": "word " * 300, "output": "Yes."}])
    assert "1 of the 1 tasks are longer, with the answer, than the 1024 tokens" in refused("--tasks", long)
    turns = [{"role": "assistant", "content": "I begin."}]
    first = write_rows(tmp_path / "first.jsonl", [{"messages": turns}])
    assert "1 of the 1 tasks do not fit the chat template" in refused("--tasks", first)
    assert not (tmp_path / "out").exists()


def test_of_a_task_with_earlier_turns_the_last_answer_is_measured() -> None:
    from transformers import LlamaConfig

    from finetune.data import Example

    said = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you"))
    tokenizer = letters()
    (row,) = evaluate.encode_tasks(
        tokenizer, [Example(said, "")], stops=[tokenizer.eos_token_id], config=LlamaConfig(), new_tokens=4
    )
    assert tokenizer.decode([label for label in row.labels if label >= 0]) == "See you<|im_end|>"


def test_a_control_of_our_own_rows_is_none(data: Path, refused: Said) -> None:
    assert "are among ours, so it is no control" in refused("--control", data)
    assert "--control is for --stage sft, not dpo" in refused("--stage", "dpo", "--control", data)


def test_documents_and_pairs_that_are_too_long_are_said(
    tiny: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"prompt": f"Say {n}", "chosen": "word " * 300, "rejected": "No."} for n in range(3)]
    rows = {"dpo": pairs, "pretrain": [{"text": f"A line about {n}."} for n in range(3)]}
    said = {
        "dpo": "All 3 rows are longer than --max-length 1024: raise",
        "pretrain": "each is longer than --max-length 1:",
    }
    for stage, length in (("dpo", "1024"), ("pretrain", "1")):
        data = write_rows(tmp_path / f"{stage}.jsonl", rows[stage])
        flags = ["--stage", stage, "--max-length", length, "--tasks", str(tasks), "--plan"]
        assert run.main([str(data), "--base", str(tiny), *flags]) == 2
        assert said[stage] in capfd.readouterr().err


# ---------------------------------------------------------------- what stands in a folder


def test_a_full_fine_tune_is_measured_against_what_it_was_trained_from(
    tiny: Path, tasks: Path, tmp_path: Path, refused: Said
) -> None:
    out = tmp_path / "out"
    refused("--method", "full", "--learning-rate", 1e-2, "--steps", 3, "--watch", 0, code=0)
    before = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
    assert before["difference_nats"] < -0.1
    assert evaluate.main([str(out), "--tasks", str(tasks), "--new-tokens", "2"]) == 0
    after = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
    assert after["difference_nats"] == pytest.approx(before["difference_nats"], abs=1e-4)


def test_what_stands_on_no_base_is_not_measured(
    tiny: Path, tasks: Path, tmp_path: Path, refused: Said, capfd: pytest.CaptureFixture[str]
) -> None:
    refused("--watch", 0, code=0)
    merged = tmp_path / "merged"
    assert merging.main([str(tmp_path / "out"), "--out", str(merged), "--tasks", str(tasks)]) == 0
    for folder in (tiny, merged):
        before = sorted(file.name for file in folder.iterdir())
        assert evaluate.main([str(folder), "--tasks", str(tasks)]) == 2
        assert "is a whole model, and what it was trained from is not noted" in capfd.readouterr().err
        assert sorted(file.name for file in folder.iterdir()) == before
    assert "holds what was merged" in refused("--watch", 0, "--out", merged)
    assert merging.main([str(tmp_path / "out"), "--out", "/proc/nowhere", "--tasks", str(tasks)]) == 6
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"no weights")
    assert evaluate.main([str(tmp_path / "out"), "--tasks", str(tasks)]) == 2
    assert "does not fit its model" in capfd.readouterr().err


def test_a_full_memory_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        return len(torch.empty(2**60, dtype=torch.uint8))  # the allocator's own words

    assert evaluate.ended(work) == 2
    assert "The memory is full. --max-length N or --checkpointing on" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        evaluate.ended(lambda: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
