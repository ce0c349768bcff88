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


def save_tiny_gguf(path: Path, *, layers: int = 2, hidden: int = 64) -> Path:
    """A tiny Llama of random weights as one GGUF file, tokenizer and chat template inside."""
    import gguf
    import numpy as np

    numbers, tokenizer = np.random.default_rng(0), letters()
    tokens = [*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "ab"]  # the format wants one merge
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(1024)
    file.add_embedding_length(hidden)
    file.add_block_count(layers)
    file.add_feed_forward_length(2 * hidden)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(hidden // 4)
    file.add_vocab_size(len(tokens))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    file.add_token_merges(["a b"])
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_pad_token_id(tokenizer.pad_token_id)
    file.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), hidden), "output": (len(tokens), hidden), "output_norm": (hidden,)}
    for layer in range(layers):
        parts = {"attn_q": (hidden, hidden), "attn_k": (hidden // 2, hidden), "attn_v": (hidden // 2, hidden),
                 "attn_output": (hidden, hidden), "ffn_gate": (2 * hidden, hidden), "ffn_up": (2 * hidden, hidden),
                 "ffn_down": (hidden, 2 * hidden), "attn_norm": (hidden,), "ffn_norm": (hidden,)}  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        values = np.ones(shape) if len(shape) == 1 else numbers.normal(0, 0.1, shape)
        file.add_tensor(f"{name}.weight", values.astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


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
