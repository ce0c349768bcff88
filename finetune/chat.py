"""Talk to a tuned model in the terminal.

    python -m finetune.chat outputs/self_instruct-tuned
    python -m finetune.chat                              the bundled model, to compare

Asked through the same renderer and the same decoder as the generators use with --model. An empty line or Ctrl-D
ends; /new forgets what was said.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.evaluate import ended, more_than_nothing, say
from pipeline.backends.local_model import LocalModel
from pipeline.errors import DONE, UsageError
from pipeline.llm import Request, RequestFailed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="a tuned model's folder [the bundled model]")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="[0: always the likeliest word]")
    parser.add_argument("--new-tokens", type=more_than_nothing, default=256, metavar="N", help="a reply's most [256]")
    options = parser.parse_args(argv)
    return ended(lambda: asyncio.run(_chat(options)))


async def _chat(options: argparse.Namespace) -> int:
    if not 0 <= options.temperature < math.inf:
        raise UsageError(f"--temperature is {options.temperature}, and must be 0 or above.")
    model = LocalModel.from_directory(options.model) if options.model else LocalModel.bundled()
    opening: list[tuple[str, str]] = [("system", options.system)] if options.system else []
    turns = list(opening)
    try:
        while (line := await asyncio.to_thread(_read_line)).strip():
            if line.strip() == "/new":
                turns = list(opening)
                continue
            turns.append(("user", line.strip()))
            try:
                reply = await model.complete(Request(tuple(turns), options.new_tokens, options.temperature))
            except RequestFailed as failure:
                turns.pop()
                say(failure.detail)
                continue
            turns.append(("assistant", reply.text))
            print(reply.text, flush=True)
    finally:
        await model.close()
    return DONE


def _read_line() -> str:
    """A line from the user; "" at the end of input."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


if __name__ == "__main__":
    sys.exit(main())
