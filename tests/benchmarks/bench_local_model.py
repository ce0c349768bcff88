"""How fast the bundled model answers: tokens a second with 1, 8 and 32 requests under way.

    python -m tests.benchmarks.bench_local_model

The bar is 120 tokens/s with 32 requests at once, no schema, on two cores; beside it stands transformers' own
`generate` on such prompts as one batch, in the same run. Only tokens of replies count; `generate` goes on padding
the rows that have ended until the last one has, so what it makes with the padding is printed too.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time

from pipeline.backends import weights
from pipeline.backends.chat_template import render_chat
from pipeline.backends.local_model import LocalModel
from pipeline.llm import JsonObject, Request

MAX_TOKENS = 128
TOPICS = ["rain", "bread", "trains", "chess", "tea", "maps", "owls", "salt", "glass", "bees", "clocks", "wool"]
SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
_numbers = itertools.count()


def prompts(count: int) -> list[str]:
    """Short prompts, never the same twice in a process, so that nothing is remembered whole."""
    return [f"Write {3 + n % 4} sentences on {TOPICS[n % 12]}, number {n}." for n in itertools.islice(_numbers, count)]


async def together(model: LocalModel, count: int, schema: JsonObject | None) -> float:
    """Tokens a second of `count` requests sent at once."""
    requests = [Request((("user", text),), MAX_TOKENS, 0.7, schema=schema) for text in prompts(count)]
    started = time.perf_counter()
    replies = await asyncio.gather(*(model.complete(request) for request in requests))
    return sum(reply.completion_tokens or 0 for reply in replies) / (time.perf_counter() - started)


async def streaming(model: LocalModel, count: int, under_way: int) -> float:
    """Tokens a second of many requests, `under_way` at any time: what a run sees."""
    slots = asyncio.Semaphore(under_way)

    async def one(text: str) -> int:
        async with slots:
            return (await model.complete(Request((("user", text),), MAX_TOKENS, 0.7))).completion_tokens or 0

    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(text) for text in prompts(count))))
    return tokens / (time.perf_counter() - started)


def plain_generate(count: int) -> tuple[float, float]:
    """Tokens a second of transformers' own batch: those of replies, and all it makes, padding included."""
    import torch

    model, tokenizer = weights.load(weights.bundled())
    tokenizer.padding_side = "left"
    rendered = [{"input_ids": render_chat(tokenizer, [("user", text)])} for text in prompts(count)]
    batch = tokenizer.pad(rendered, return_tensors="pt").to(model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=MAX_TOKENS, do_sample=True, temperature=0.7, top_k=0)
    seconds = time.perf_counter() - started
    said = out[:, batch["input_ids"].shape[1] :]
    ended = (said == tokenizer.eos_token_id).any(1).sum()  # their last token is no padding, though it has the same id
    replies = int((said != tokenizer.pad_token_id).sum() + ended)
    return replies / seconds, said.numel() / seconds


async def main() -> None:
    print(f"load before: {os.getloadavg()[0]:.1f}")
    started = time.perf_counter()
    model = LocalModel.bundled()
    found = time.perf_counter()
    await model.complete(Request((("user", "Hello"),), 1))
    print(f"found in {found - started:.2f} s, first token after {time.perf_counter() - started:.1f} s")
    for schema in (None, SCHEMA):
        await together(model, 2, schema)  # the grammar is compiled once, and is not what is measured
        for count in (1, 8, 32):
            speed = await together(model, count, schema)
            print(f"{count:3} at once, {'schema' if schema else 'free text'}: {speed:6.0f} tokens/s")
    print(f"128 in all, 32 at any time: {await streaming(model, 128, 32):6.0f} tokens/s")
    await model.close()
    replies, padded = plain_generate(32)
    print(f" 32 by plain generate: {replies:6.0f} tokens/s ({padded:.0f} with padding)")
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    asyncio.run(main())
