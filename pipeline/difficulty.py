"""How hard a record is for a model, by the model's own losses: IFD and perplexity, without an endpoint.

    model = LossModel()                        # the bundled one, or LossModel(path)
    for place, scores in score(records, model, cache): ...

IFD, instruction-following difficulty (Li et al. 2023, "From Quantity to Quality"), is the mean loss of the answer's
tokens after its question, divided by their mean loss without it. Near 0: the question gives the answer away. Near 1: it
hardly helps, so that there is something to learn. Above 1: the answer is less likely after this question than after
none, and often does not belong to it. Perplexity is e to the loss after the question. Scores of two models do not
compare. Losses lie in cache.sqlite, by text and weights.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.backends import weights
from pipeline.backends.chat_template import render_answer, render_chat
from pipeline.cache import Cache, key_of
from pipeline.records import Record, user_message
from pipeline.text import one_line

SCORES = ("ifd", "perplexity")
MOST_TOKENS = 2048  # of a conversation; longer ones get no score
TOKENS_A_BATCH = 2048  # padding included: their logits take 0.4 GB with the bundled model's vocabulary
_VERSION = "1"  # of what a loss is taken over
_KIND = "losses"  # in the cache
_CHUNK = 64  # records computed before they are stored


class Losses(NamedTuple):
    """Mean losses of an answer's tokens, its stop token among them; NaN where they could not be taken."""

    given: float  # after the conversation
    alone: float  # after nothing but the opening of an answer

    def scores(self) -> dict[str, float]:
        """For a record's `scores`; empty where there is no loss."""
        if not (math.isfinite(self.given) and self.alone > 0):
            return {}
        return {"ifd": round(self.given / self.alone, 4), "perplexity": round(math.exp(min(self.given, 50.0)), 4)}


NO_LOSSES = Losses(math.nan, math.nan)
Sequenced = tuple[list[int], list[int]]  # what is given, and the answer


class LossModel:
    """A local model; its weights are loaded when the first loss is wanted."""

    def __init__(self, path: Path | None = None) -> None:
        """:raises UsageError: where there is no model at the path."""
        self._weights = weights.bundled() if path is None else weights.find(path)
        self._loaded: tuple[Any, Any] | None = None

    @property
    def identity(self) -> str:
        return self._weights.identity

    def losses(self, records: Sequence[Record]) -> list[Losses]:
        """The losses of the records' answers, in order."""
        model, tokenizer = self._load()
        window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or MOST_TOKENS
        sequences: list[Sequenced] = []
        places: list[int] = []
        for place, record in enumerate(records):
            pair = _sequences(tokenizer, record)
            if pair and max(len(given) + len(answer) for given, answer in pair) <= min(window, MOST_TOKENS):
                sequences += pair
                places.append(place)
        losses = _mean_losses(model, sequences)
        found = [NO_LOSSES] * len(records)
        for place, given, alone in zip(places, losses[::2], losses[1::2], strict=True):
            found[place] = Losses(given, alone)
        return found

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            model, tokenizer = weights.load(self._weights)
            self._loaded = model.float(), tokenizer  # in bf16 a loss would depend on what else is in its batch
        return self._loaded


def score(
    records: Iterable[tuple[int, Record]],
    model: LossModel,
    cache: Cache,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[int, dict[str, float]]]:
    """(place, scores) of each record, in order; what is not in the cache is computed and put there."""
    done = 0
    chunk: list[tuple[int, Record]] = []
    for entry in records:
        chunk.append(entry)
        if len(chunk) == _CHUNK:
            yield from _scored(chunk, model, cache)
            done += len(chunk)
            progress(done)
            chunk = []
    yield from _scored(chunk, model, cache)


def _scored(
    chunk: Sequence[tuple[int, Record]], model: LossModel, cache: Cache
) -> Iterator[tuple[int, dict[str, float]]]:
    keys = [key_of(_VERSION, model.identity, json.dumps(_messages(record), ensure_ascii=True)) for _, record in chunk]
    known = cache.get_many(_KIND, keys)
    missing = {key: record for key, (_, record) in zip(keys, chunk, strict=True) if key not in known}
    if missing:
        computed = zip(missing, model.losses(list(missing.values())), strict=True)
        fresh = {key: struct.pack("<dd", *losses) for key, losses in computed}
        cache.put(_KIND, fresh)
        known |= fresh
    for key, (place, _) in zip(keys, chunk, strict=True):
        yield place, Losses(*struct.unpack("<dd", known[key])).scores()


# ---------------------------------------------------------------- conversations as tokens


def _messages(record: Record) -> list[tuple[str, str]]:
    turns = [message for user, answer in record.history for message in (("user", user), ("assistant", answer))]
    return [*turns, ("user", user_message(record.instruction, record.input)), ("assistant", record.output)]


def _sequences(tokenizer: Any, record: Record) -> list[Sequenced]:
    """The answer after its conversation, and after an answer's opening alone; [] where the template takes neither."""
    import jinja2

    messages = _messages(record)
    try:
        given, answer, _ = render_answer(tokenizer, messages)
        before = render_chat(tokenizer, messages[:-1], add_generation_prompt=False)
    except (jinja2.TemplateError, TypeError, ValueError):
        return []
    opening = given[len(before) :] if given[: len(before)] == before else []
    if not opening and tokenizer.bos_token_id is not None:
        opening = [tokenizer.bos_token_id]
    if not opening or not answer or not one_line(record.output):
        return []
    return [(given, answer), (opening, answer)]


def _mean_losses(model: Any, sequences: Sequence[Sequenced]) -> list[float]:
    """The mean loss of each answer's tokens. Alike in length go together, so that little is padded."""
    losses = [math.nan] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda at: -sum(map(len, sequences[at])))
    while order:
        longest = sum(map(len, sequences[order[0]]))
        batch, order = order[: max(1, TOKENS_A_BATCH // longest)], order[max(1, TOKENS_A_BATCH // longest) :]
        for at, loss in zip(batch, _batch_losses(model, [sequences[at] for at in batch]), strict=True):
            losses[at] = loss
    return losses


def _batch_losses(model: Any, batch: Sequence[Sequenced]) -> list[float]:
    """Padded on the right, where no token of a causal model looks."""
    import torch

    length = max(len(given) + len(answer) for given, answer in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    seen = torch.zeros(len(batch), length, dtype=torch.long)
    learnt = torch.zeros(len(batch), length - 1, dtype=torch.bool)  # positions that say an answer's token next
    for row, (given, answer) in enumerate(batch):
        end = len(given) + len(answer)
        ids[row, :end] = torch.tensor(given + answer)
        seen[row, :end] = 1
        learnt[row, len(given) - 1 : end - 1] = True
    with torch.inference_mode():
        logits = model(input_ids=ids.to(model.device), attention_mask=seen.to(model.device), use_cache=False).logits
        wanted = ids[:, 1:][learnt].to(model.device)
        said = logits[:, :-1][learnt.to(model.device)].float()
        each = torch.nn.functional.cross_entropy(said, wanted, reduction="none")
    return [float(part.double().mean()) for part in each.cpu().split([len(answer) for _, answer in batch])]
