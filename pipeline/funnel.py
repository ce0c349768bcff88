"""What became of the candidates, in words: why a run fell short, what most likely did it, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.records import Rejection
from pipeline.run import GIVE_UP_AFTER, Tally

# What helps where a reply could not be read, by the reason that came most often.
_READING = {
    "request_failed": "ask again what failed with --retry-failed",
    "refusal": "the model declines what it is asked; another --model, or other seeds or documents",
    "content_filter": "the endpoint's content filter took them; another --model, or other seeds or documents",
    "cut_off": "give the replies more room with --max-tokens",
    "reasoning_only": "switch the model's thinking off by --extra-body, or give it room to end with --max-tokens 8000",
    "empty_reply": "give the replies more room with --max-tokens, or name another --model",
    "not_json": "name a --model that can keep to JSON, or give the replies more room with --max-tokens",
    "wrong_shape": "name a --model that can keep to a JSON schema",
}
# What gives a generator more to ask about, where it came to the end of its sources.
_MORE = {
    "self_qa": "a higher --per-chunk, or more documents",
    "self_kg": "a higher --per-fact or --hops, or more facts",
}
_MORE_SEEDS = "more seed tasks, or another --seed"  # of a chain, which another seed leads elsewhere


def why_short(tally: Tally, at_its_end: str) -> str:
    """Which of its ends a run without enough records came to."""
    if tally.ended == "barren":
        return f"{GIVE_UP_AFTER} items in a row brought no record that was kept"
    return f"{at_its_end}, and there is nothing more"


def why_nothing(tally: Tally, items: int, at_its_end: str, switches: Collection[str], generator: str) -> str:
    """Why a source of so many items brought no record at all."""
    if items:
        return f"{why_short(tally, at_its_end)}. {likeliest_cause(tally, switches, generator=generator)}"
    bad = sum(number for name, number in tally.rejected.items() if tally.firsts[name].stage == "file")
    if not bad:
        return "what was named holds nothing that could be asked about."
    first = next(example.reason for example in tally.firsts.values() if example.stage == "file")
    return f"nothing in its files could be read ({bad} complaints). The first: {first}"


def likeliest_cause(tally: Tally, switches: Collection[str], target: int | None = None, generator: str = "") -> str:
    """What took most of the candidates: its share, an example, and what turns it off. `switches` are the filters on.

    Where all that was turned away or merged is less than half of what is missing, no filter is to blame.
    """
    took = tally.rejected.total()
    missing = max(0, (target or 0) - tally.kept)
    if tally.ended == "exhausted" and took + tally.merged < missing / 2:
        return (
            f"{missing} records are missing, and only {took + tally.merged} candidates were turned away or merged:"
            f" the sources gave no more. What helps: {_MORE.get(generator, _MORE_SEEDS)}."
        )
    if tally.merged > took:
        return f"{tally.merged} candidates were exact duplicates of earlier ones: another --seed, or other sources."
    if not took:
        return "No candidate came at all: there was nothing to ask about, or no reply held anything."
    name, number = tally.rejected.most_common(1)[0]
    example = tally.firsts[name]
    about = f" ({_short(example.instruction)})" if example.instruction else ""
    said = (
        f"The likeliest cause: {name} took {number} of the {took} turned away ({number / took:.0%}), the first because"
    )
    return f"{said} {example.reason.rstrip('.')}{about}. {_advice(name, example, tally, switches)}"


def what_next(tally: Tally, switches: Collection[str], generator: str) -> str:
    """What to change for more records; only what can help: no filter where none took anything, no --seed at an end."""
    by_filters = sum(number for name, number in tally.rejected.items() if name in switches)
    helps = [_MORE.get(generator, _MORE_SEEDS)] if tally.ended == "exhausted" else []
    if by_filters:
        helps.append(f"looser --filters (they turned away {by_filters})")
    if tally.rejected["parse"]:
        helps.append(f"another --model ({tally.rejected['parse']} replies could not be read)")
    if tally.ended != "exhausted":
        helps.append("another --seed" if by_filters or tally.merged else "other sources")
    return "; or ".join(helps)


def _advice(name: str, example: Rejection, tally: Tally, switches: Collection[str]) -> str:
    if name == "parse":
        reason = tally.reasons.most_common(1)[0][0] if tally.reasons else ""
        return f"What may help: {_READING.get(reason, 'name another --model')}."
    if name == "cut_off":
        return f"What may help: {_READING[name]}."
    if name not in switches:
        return "No setting turns that off."
    threshold = (
        f", or {name}=X for another threshold than {example.threshold:g}" if example.threshold is not None else ""
    )
    afresh = "; it decides what later prompts show, so with a new --out" if example.stage == "instruction" else ""
    return f"If that is wrong: --filters {name}=off{threshold}{afresh}."


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
