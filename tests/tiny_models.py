"""Models of random weights and a tokenizer of single characters, small enough to be made in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SILENT_TEMPLATE = TEMPLATE.replace("<|im_end|>", "")  # ends no answer with a stop token


def letters(template: str | None = TEMPLATE, *, pad: str | None = "<|im_end|>") -> Any:
    """A byte-level tokenizer without merges, its stop token <|im_end|>, which is also its padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    if pad:
        tokenizer.pad_token = pad
    tokenizer.chat_template = template
    return tokenizer


def save_tiny(folder: Path, template: str | None = TEMPLATE, *, layers: int = 2, hidden: int = 64) -> Path:
    """A tiny Llama of random weights in bf16, with its tokenizer, as `save_pretrained` leaves them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = letters(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


COLOURS = ("red", "green", "blue", "white", "black", "pink", "grey", "gold")
THINGS = ("car", "hat", "door", "bird", "lamp", "boat", "cup", "tree")


def little_rows(count: int = 24) -> list[dict[str, Any]]:
    """Short Alpaca rows, no two alike, that a tiny model can learn."""
    rows = []
    for number in range(count):
        colour, thing = COLOURS[number % 8], THINGS[(number // 8 + number) % 8]
        rows.append({"instruction": f"Colour of {thing} {number}?", "input": "", "output": f"It is {colour}."})
    return rows
