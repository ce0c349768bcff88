"""Continuous batching: sequences that decode together, each joining and leaving when it is ready.

    add(row)   prefill the prompt alone, say its first token
    step()     rows that are finished leave, rows that were added join, and all say one token

Every row ends in the same column of the key/value cache and is padded on the left, so one forward pass
writes one column for all of them:

    row 0   . . . . a b c d e        a new row is put in with its last token in the newest column
    row 1   . . f g h i j k l        the last row moves into the place of one that leaves
    row 2   m n o p q r s t u        columns that no row uses any more are cut off now and then

Prompts are prefilled one by one, not together: a prompt of a hundred tokens keeps two cores busy on its own,
nothing is wasted on padding, and its keys and values do not depend on who came at the same time. The last few
prompts are remembered, and a new one starts from the longest prefix it shares with them (few-shot prompts
share most of theirs).

This module imports torch and transformers; import it late.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

REMEMBERED_PROMPTS = 4
REMEMBERED_TOKENS = 2048  # a longer prompt is not remembered: its memory would be large and its prefix rarely shared
MIN_SHARED_PREFIX = 16


@dataclass(eq=False)
class Row:
    """One sequence: its prompt, how to sample it, and what it has said so far."""

    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    rng: random.Random
    matcher: Any = None  # an xgrammar.GrammarMatcher, or None for free text
    tokens: list[int] = field(default_factory=list)  # without the token that stopped it
    finish_reason: Literal["stop", "length", "dropped"] | None = None

    @property
    def final_length(self) -> int:
        """The columns this row needs at most."""
        return len(self.prompt) + self.max_tokens


class _Columns(DynamicLayer):  # type: ignore[misc]  # mypy does not follow into transformers
    """One layer's keys and values, in buffers with spare rows below and spare columns to the right.

    The model sees views that end at the rows and columns in use, so that a token is appended, and a row comes or
    goes, without copying the rest.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.buffers = (keys, values)  # [rows, heads, columns, head size]

    def show(self, rows: int, width: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :width] for buffer in self.buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, _, new, _ = key_states.shape
        start = self.keys.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start : start + new] = states
        self.show(rows, start + new)
        return self.keys, self.values


class ContinuousBatch:
    """The rows that decode together on one model. Single-threaded: one thread owns it."""

    def __init__(self, model: Any, stop_ids: frozenset[int], *, size: int, cache_bytes: int) -> None:
        """At most `size` rows, and fewer where their keys and values would need more than `cache_bytes`."""
        self._model = model
        self._stop_ids = stop_ids
        self._size = size
        self._cache_bytes = cache_bytes
        self._bytes_per_column = 0  # of one row; known after the first prefill
        self._layers: list[_Columns] = []
        self._width = 0  # columns in use
        self._rows: list[Row] = []  # in the order of the cache's rows
        self._starts: list[int] = []  # the column of each row's first token
        self._joining: list[tuple[Row, Cache]] = []  # prefilled, not yet in the cache
        self._remembered: deque[tuple[list[int], Cache]] = deque(maxlen=REMEMBERED_PROMPTS)

    def has_room_for(self, row: Row) -> bool:
        """Whether the row may be added now (a first one always may)."""
        rows = [*self._rows, *(joining for joining, _ in self._joining), row]
        columns = len(rows) * max(each.final_length for each in rows)
        return len(rows) == 1 or (len(rows) <= self._size and columns * self._bytes_per_column <= self._cache_bytes)

    # ------------------------------------------------------------------------------------------------------------
    # A row's way: add, step until it has a finish_reason

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def add(self, row: Row) -> None:
        """Read the prompt and say the first token. The row may be finished by it."""
        known, cache = self._longest_known_prefix(row.prompt)
        out = self._model(
            input_ids=torch.tensor([row.prompt[known:]], device=self._model.device),
            position_ids=torch.arange(known, len(row.prompt), device=self._model.device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if len(row.prompt) <= REMEMBERED_TOKENS:
            self._remembered.append((row.prompt, cache))
        if not self._bytes_per_column:
            self._bytes_per_column = sum(
                tensor[0, :, 0].nbytes for layer in cache.layers for tensor in (layer.keys, layer.values)
            )
        self._take(out.logits[:, -1], [row])
        if row.finish_reason is None:
            self._joining.append((row, cache))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """Say one more token in every row that is not finished."""
        self._leave([i for i, row in enumerate(self._rows) if row.finish_reason is not None])
        joining = [(row, cache) for row, cache in self._joining if row.finish_reason is None]
        self._joining = []
        if not self._rows and not joining:
            return
        self._join(joining)
        device = self._model.device
        starts = torch.tensor(self._starts, device=device)[:, None]
        out = self._model(
            input_ids=torch.tensor([row.tokens[-1:] for row in self._rows], device=device),
            attention_mask=(torch.arange(self._width + 1, device=device) >= starts).long(),
            position_ids=self._width - starts,
            past_key_values=Cache(layers=self._layers),
            use_cache=True,
        )
        self._width += 1
        self._take(out.logits[:, -1], self._rows)

    def _take(self, logits: torch.Tensor, rows: list[Row]) -> None:
        """Sample a token for each row and write down what it means."""
        logits = logits.float()
        _hold_to_grammars(logits, rows)
        for row, token in zip(rows, sample(logits, rows), strict=True):
            if row.matcher is not None:
                assert row.matcher.accept_token(token), f"token {token} was drawn although the schema forbids it"
            if token in self._stop_ids:
                row.finish_reason = "stop"
                continue
            row.tokens.append(token)
            if len(row.tokens) >= row.max_tokens:
                row.finish_reason = "length"

    # ------------------------------------------------------------------------------------------------------------
    # The cache

    def _leave(self, gone: list[int]) -> None:
        """Take rows out; the last row moves into each hole."""
        for row in reversed(gone):
            last = len(self._rows) - 1
            if row != last:
                for buffer in self._buffers():
                    buffer[row, :, : self._width] = buffer[last, :, : self._width]
                self._rows[row], self._starts[row] = self._rows[last], self._starts[last]
            self._rows.pop()
            self._starts.pop()

    def _join(self, joining: list[tuple[Row, Cache]]) -> None:
        """Put the prefilled rows in, each with its last token in the newest column, and show the model all rows."""
        rows = len(self._rows) + len(joining)
        used = [self._width - start for start in self._starts]
        width = max(used + [cache.get_seq_length() for _, cache in joining])
        spare_rows, spare_columns = self._spare()
        if len(joining) > spare_rows or spare_columns < 1 or width > self._width:
            like = joining[0][1] if joining else Cache(layers=self._layers)
            # Half as much again, so that the many copies of a growing cache cost no more than a few of it all.
            self._reallocate(like, min(rows + rows // 2, max(rows, self._size)), width, width + width // 2 + 64)
        for row, cache in joining:
            place, length = len(self._rows), cache.get_seq_length()
            parts = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
            for buffer, part in zip(self._buffers(), parts, strict=True):
                buffer[place, :, self._width - length : self._width] = part[0]
            self._rows.append(row)
            self._starts.append(self._width - length)
        for layer in self._layers:
            layer.show(rows, self._width)

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for layer in self._layers for buffer in layer.buffers]

    def _spare(self) -> tuple[int, int]:
        """The rows and columns the buffers still have room for."""
        if not self._layers:
            return 0, 0
        rows, _, columns, _ = self._layers[0].buffers[0].shape
        return rows - len(self._rows), columns - self._width

    def _reallocate(self, like: Cache, rows: int, width: int, columns: int) -> None:
        """Copy the present rows into new buffers, as `width` columns: what only rows now gone used is cut off."""
        old, count, kept = self._layers, len(self._rows), min(width, self._width)
        self._layers = []
        for index, layer in enumerate(like.layers):
            buffers = []
            for which, tensor in enumerate((layer.keys, layer.values)):
                _, heads, _, head_size = tensor.shape
                # Zeros, not empty: a masked column still takes part in a product, and garbage may hold a NaN.
                buffer = tensor.new_zeros(rows, heads, columns, head_size)
                if count:
                    present = old[index].buffers[which][:count, :, self._width - kept : self._width]
                    buffer[:count, :, width - kept : width] = present
                buffers.append(buffer)
            self._layers.append(_Columns(buffers[0], buffers[1]))
        self._starts = [start + width - self._width for start in self._starts]
        self._width = width

    def _longest_known_prefix(self, prompt: list[int]) -> tuple[int, Cache]:
        """How many tokens of the prompt need no computing, and a cache of its own that holds them."""
        best, source = 0, None
        for known, cache in self._remembered:
            shared = _shared_prefix(known, prompt)
            if shared > best:
                best, source = shared, cache
        best = min(best, len(prompt) - 1)  # the last token is always computed: its logits are wanted
        fresh = DynamicCache()
        if source is None or best < MIN_SHARED_PREFIX:
            return 0, fresh
        for index, layer in enumerate(source.layers):
            fresh.update(layer.keys[:, :, :best], layer.values[:, :, :best], index)
        return best, fresh


def can_batch(model: Any) -> bool:
    """Whether all the model remembers is keys and values (a recurrent state cannot be padded or cut)."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _shared_prefix(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


# ----------------------------------------------------------------------------------------------------------------
# Sampling


def sample(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    """One token a row: the likeliest at temperature 0, otherwise drawn with that row's own random numbers.

    :param logits: float32, [rows, vocabulary]; forbidden tokens hold -inf.
    """
    tokens: torch.Tensor = logits.argmax(-1)
    warm = [i for i, row in enumerate(rows) if row.temperature > 0]
    if not warm:
        return list(tokens.tolist())
    temperatures = torch.tensor([rows[i].temperature for i in warm], device=logits.device)[:, None]
    probabilities = (logits[warm] / temperatures).softmax(-1)
    _keep_nucleus(probabilities, [rows[i].top_p for i in warm])
    # Draw by inverting the distribution function: one uniform number a token, the same on every device.
    cumulative = probabilities.cumsum(-1)
    draws = torch.tensor([rows[i].rng.random() for i in warm], device=logits.device)[:, None]
    drawn = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)[:, 0]
    # Rounding can leave a draw at the very end, past the last possible token: then the likeliest stands.
    tokens[warm] = torch.where(drawn < logits.shape[-1], drawn, tokens[warm])
    return list(tokens.tolist())


def _keep_nucleus(probabilities: torch.Tensor, top_ps: list[float]) -> None:
    """Zero, in place, all but the likeliest tokens whose mass reaches top_p (the one that crosses it stays)."""
    cut = [i for i, top_p in enumerate(top_ps) if top_p < 1]
    if not cut:
        return
    limits = torch.tensor([top_ps[i] for i in cut], device=probabilities.device)[:, None]
    # A thousand tokens nearly always hold the mass, and finding them is five times as quick as sorting them all.
    likeliest = probabilities[cut].topk(min(1024, probabilities.shape[-1])).values
    if (likeliest.sum(-1, keepdim=True) < limits).any():
        likeliest = probabilities[cut].sort(-1, descending=True).values
    inside = likeliest.cumsum(-1) - likeliest < limits
    inside[:, 0] = True  # top_p 0 means the likeliest, not nothing
    threshold = likeliest.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
    probabilities[cut] = probabilities[cut].masked_fill(probabilities[cut] < threshold, 0)


def _hold_to_grammars(logits: torch.Tensor, rows: list[Row]) -> None:
    """Forbid, in place, every token that would leave a row's schema."""
    held = [i for i, row in enumerate(rows) if row.matcher is not None]
    if not held:
        return
    import xgrammar  # optional: only rows with a schema need it

    bitmask = xgrammar.allocate_token_bitmask(len(rows), logits.shape[-1])
    for i in held:
        rows[i].matcher.fill_next_token_bitmask(bitmask, i)
    xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device), indices=held)
