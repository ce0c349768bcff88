"""Put an adapter into its base for good, and show that nothing was lost.

    python -m finetune.merge outputs/self_instruct-tuned                      into the base as it was trained on
    python -m finetune.merge outputs/self_instruct-tuned --onto original      into the base as published

The default takes the NF4 base, dequantised: that is the model that was measured. The published base is better where
little was learnt, but the adapter was not made for it. Never in 4 bits: small changes would be rounded away. How far
the merged model is from the adapter is measured on the held-out tasks and said; where rounding to bf16 alone takes it
further than it should, it is written in fp32, at twice the size (--dtype says otherwise).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import card
from finetune.bases import TOKENIZER_FILES, keep_gradients_right, known_as, load_base, prepare, put_on_adapter
from finetune.data import Example
from finetune.evaluate import Tuned, encode_tasks, ended, language_of_run, read_tasks, say
from finetune.measure import PLAIN_TEXT, answer_losses, mean_loss, plain_text_loss
from finetune.methods import METHODS
from finetune.rows import IGNORED, Row, stop_ids
from pipeline.backends import weights as local_weights
from pipeline.errors import DONE, UsageError

COMPARED = 64  # tasks, at most
FURTHEST = 0.01  # KL in nats a token from the adapter's predictions, for a merge into the base it was trained on
DTYPES = ("auto", "bfloat16", "float32")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tuned", type=Path, help="a folder that finetune.run wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="[the folder's name with -merged]")
    parser.add_argument("--onto", choices=("dequantised", "original"), default="dequantised", help="[dequantised]")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="[auto: bfloat16, or float32 where that is off]"
    )
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="to compare on [ours, in the language of its run]")
    options = parser.parse_args(argv)
    return ended(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    out = options.out or options.tuned.with_name(f"{options.tuned.name}-merged")
    tasks = read_tasks(options.tasks, language_of_run(options.tuned), say)[:COMPARED]
    found = merge(options.tuned, out, onto=options.onto, tasks=tasks, dtype=options.dtype)
    for line in describe(found):
        say(line)
    base = found["known_as"] if "/" in found["known_as"] else found["base"]  # on the Hub, or here
    for line in card.commands(out, options.tuned, base):
        say(line)
    return DONE


def merge(tuned: Path, out: Path, *, onto: str, tasks: Sequence[Example], dtype: str = "auto") -> dict[str, Any]:
    """Write the merged model; returns how it compares with the adapter.

    :raises UsageError: where there is nothing to merge, or the method cannot be.
    """
    if not tuned.exists():
        raise UsageError(f"{tuned}: there is no such folder.")
    if not (tuned / "adapter_config.json").is_file():
        raise UsageError(f"{tuned} holds no adapter, so there is nothing to merge.")
    prepare()
    at = Tuned.at(tuned)
    if not METHODS[at.method].merges:
        raise UsageError(f"{tuned} was made by {at.method}, which {METHODS[at.method].cannot}.")
    if out.exists():
        raise UsageError(f"{out} exists already: name another with --out.")
    tokenizer = local_weights.load_tokenizer(tuned)
    model = _with_adapter(load_base(at.base, at.precision, "cpu"), tuned)
    stops = stop_ids(tokenizer, model.generation_config)
    rows = encode_tasks(tokenizer, tasks, stops=stops, config=model.config, new_tokens=1)
    prose = PLAIN_TEXT[language_of_run(tuned)]
    adapter = _measure(model, tokenizer, rows, prose)
    wanted = _log_probabilities(model, rows)
    del model
    kls: dict[str, float] = {}
    for written in ("bfloat16", "float32") if dtype == "auto" else (dtype,):
        merged = _merged(at, onto, written)
        kls[written] = _kl(wanted, _log_probabilities(merged, rows))
        if kls[written] <= FURTHEST or onto == "original":  # there the other base is why, not rounding
            break
    found = {
        "onto": onto, "adapter": adapter, "merged": _measure(merged, tokenizer, rows, prose), "dtype": written,
        "kl": kls[written], "kls": kls, "base": str(at.base),
        "known_as": known_as(at.base),
    }  # fmt: skip
    merged.save_pretrained(out)
    for name in (*TOKENIZER_FILES, "generation_config.json", "run.json", "trained.json", "verdict.json"):
        if (tuned / name).is_file():
            shutil.copyfile(tuned / name, out / name)
    card.refresh_card(out, known_as(at.base))
    found["templated"] = card.write_modelfile(out, tokenizer, tokenizer.convert_ids_to_tokens(list(stops)))
    return found


def _merged(at: Tuned, onto: str, dtype: str) -> Any:
    """The adapter in its base, added up in that type, which is also how it is written."""
    import torch

    model = load_base(at.base, "bf16" if onto == "original" else at.precision, "cpu")
    if at.precision == "nf4" and onto == "dequantised":
        model = model.dequantize()
    return _with_adapter(model.to(getattr(torch, dtype)), at.folder).merge_and_unload(safe_merge=True)


def _with_adapter(model: Any, adapter: Path) -> Any:
    tuned = put_on_adapter(model, adapter).eval()
    keep_gradients_right(tuned)
    return tuned


def _measure(model: Any, tokenizer: Any, rows: Sequence[Row], prose: Path) -> dict[str, float]:
    losses = answer_losses(model, rows)
    return {"answer_loss": mean_loss(losses), "plain_text_loss": plain_text_loss(model, tokenizer, prose)}


def _log_probabilities(model: Any, rows: Sequence[Row]) -> list[Any]:
    """For each row the log-probabilities where an answer's token is to be said."""
    import torch

    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids], device=model.device)).logits[0, :-1]
            places = [place for place, label in enumerate(row.labels[1:]) if label != IGNORED]
            found.append(torch.log_softmax(logits[places].float(), dim=-1).cpu())
    return found


def _kl(wanted: Sequence[Any], got: Sequence[Any]) -> float:
    """Mean KL divergence in nats a token, from the adapter's distributions to the merged model's."""
    total = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(wanted, got, strict=True))
    return total / sum(len(a) for a in wanted)


def describe(found: dict[str, Any]) -> list[str]:
    """The comparison in lines."""
    lines = [
        f"Merged into the {found['onto']} base, in {found['dtype']}: KL {found['kl']:.4f} nats a token from the"
        " adapter's predictions"
    ]
    if len(found["kls"]) > 1:
        lines.append(f"(in bfloat16 it would be {found['kls']['bfloat16']:.4f}, and is wherever it is loaded as such)")
    if not found["templated"]:
        lines.append("The Modelfile holds no TEMPLATE: this model's cannot be said in Ollama's language exactly")
    for name in ("adapter", "merged"):
        measured = found[name]
        lines.append(
            f"{name:8} answer loss {measured['answer_loss']:.4f}, plain text {measured['plain_text_loss']:.4f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
