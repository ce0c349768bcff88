"""Examples -> rows of token ids with labels, and the audit that is printed before the first step.

Only answers are learnt: every assistant turn with the token that stops it, and no other. The audit fails closed:
a run whose rows would teach something else does not start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.data import Example
from pipeline.backends.chat_template import render_answer
from pipeline.errors import UsageError

IGNORED = -100  # a label that is not learnt
ROUND_TO = 64
OWN_TEMPLATE = "the model's own"
STOPS_AT_LEAST = 0.99
UNFIT_AT_MOST = 0.01

# For a base model that comes without a chat template. It adds no token: the model's own stop token ends each answer.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, and for each the id that is to be learnt there, or IGNORED."""

    input_ids: list[int]
    labels: list[int]

    @property
    def answer_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    @property
    def length(self) -> int:
        return len(self.input_ids)

    def features(self, stage: str) -> dict[str, list[int]]:
        """As the trainer's dataset has it."""
        return {"input_ids": self.input_ids, "labels": self.labels}


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: what is given, the answer that won, and the one that lost, each with its stop token."""

    given: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def input_ids(self) -> list[int]:
        return self.given + self.chosen

    @property
    def answer_tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def length(self) -> int:
        return 2 * len(self.given) + self.answer_tokens  # both are read

    def features(self, stage: str) -> dict[str, list[int]]:
        """As the trainer's dataset has it: a reward model reads whole conversations."""
        if stage == "reward":
            return {"chosen_ids": self.given + self.chosen, "rejected_ids": self.given + self.rejected}
        return {"prompt_ids": self.given, "chosen_ids": self.chosen, "rejected_ids": self.rejected}


@dataclass
class Audit:
    """What became of the examples on their way to rows."""

    examples: int
    template: str  # where the chat template came from
    max_length: int
    stop_tokens: list[str]
    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    too_long: int = 0
    unfit: int = 0  # the template did not put the answer after what is given
    merged: int = 0  # a tokenizer would have joined the answer with what stands before it; read apart
    apart: int = 0  # conversations whose template rewrites earlier turns: one row for each answer
    stop_appended: int = 0  # the template ends answers with no stop token; it was appended
    stopped: int = 0  # rows whose last learnt token is a stop token
    doubled_start: int = 0  # rows that begin with two start tokens
    lengths: dict[str, int] = field(default_factory=dict)  # p50, p95, p99, longest, of all rows, dropped ones too
    documents: bool = False  # plain text, where all is learnt and pieces end anywhere
    shown: list[str] = field(default_factory=list)  # two rows, what is learnt between ⟦ and ⟧


def ensure_template(tokenizer: Any) -> str:
    """Give a tokenizer without a chat template a plain one; returns where the template came from."""
    if tokenizer.chat_template:
        return OWN_TEMPLATE
    if tokenizer.eos_token is None:
        raise UsageError("The model has neither a chat template nor a stop token, so no answer could be ended.")
    tokenizer.chat_template = PLAIN_TEMPLATE
    return "a plain one of ours, for the model has none"


def stop_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """The ids that end a reply: the tokenizer's, the model's, and what its template ends an answer with."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = {id_ for id_ in [tokenizer.eos_token_id, *ids] if id_ is not None}
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    _, answer, _ = render_answer(tokenizer, (("user", "Hello"), ("assistant", "Hi")))
    found.update([id_ for id_ in answer if id_ in special][:1])
    return sorted(found)


# ---------------------------------------------------------------- one example


@dataclass
class _Piece:
    """The rows of one example, and what had to be done for them."""

    rows: list[Row]
    merged: bool = False
    apart: bool = False
    appended: bool = False


def _encode(tokenizer: Any, example: Example, stops: Sequence[int]) -> _Piece:
    """Rows of a conversation: one, if every answer's rendering goes on where the one before ended, else one each.

    :raises ValueError: where the template does not put an answer after what is given.
    """
    piece = _Piece([])
    ids: list[int] = []
    labels: list[int] = []
    for place, (role, _) in enumerate(example.messages):
        if role != "assistant" or place < example.learn_from:
            continue
        given, answer, merged = render_answer(tokenizer, example.messages[: place + 1])
        piece.merged |= merged
        ends = [index for index, id_ in enumerate(answer) if id_ in stops]
        if ends:
            learnt = ends[-1] + 1
        else:  # nothing would teach it to stop
            answer = [*answer, tokenizer.eos_token_id]
            learnt, piece.appended = len(answer), True
        if given[: len(ids)] != ids:
            piece.rows.append(Row(ids, labels))
            piece.apart, ids, labels = True, [], []
        labels = labels + [IGNORED] * (len(given) - len(ids)) + answer[:learnt] + [IGNORED] * (len(answer) - learnt)
        ids = given + answer
    piece.rows.append(Row(ids, labels))
    return piece


def encode_document(tokenizer: Any, text: str) -> Row:
    """A plain document, all of it learnt, with the stop token at its end."""
    has_start = tokenizer.bos_token_id is not None and getattr(tokenizer, "add_bos_token", False)
    start = [tokenizer.bos_token_id] if has_start else []
    ids = [*start, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return Row(ids, list(ids))


def encode_documents(tokenizer: Any, examples: Sequence[Example], max_length: int) -> tuple[list[Row], Audit]:
    """Plain documents, cut into pieces of at most `max_length` tokens: for continued pretraining."""
    rows = []
    for example in examples:
        ids = encode_document(tokenizer, example.answer).input_ids
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        rows += [Row(piece, list(piece)) for piece in pieces if len(piece) > 1]
    audit = Audit(len(examples), "none: plain text", max_length, [tokenizer.eos_token], documents=True)
    _count(audit, tokenizer, rows, {tokenizer.eos_token_id})
    return rows, audit


def encode_pairs(
    tokenizer: Any, examples: Sequence[Example], *, stops: Sequence[int], max_length: int, template: str = OWN_TEMPLATE
) -> tuple[list[Pair], Audit]:
    """Preference pairs, both answers after the same prompt; pairs with one too long are dropped and counted."""
    lost = [
        replace(example, messages=(*example.messages[:-1], ("assistant", example.rejected))) for example in examples
    ]
    settings: dict[str, Any] = {"stops": stops, "max_length": max_length, "template": template}
    pairs, won_rows = [], []
    unfit = 0
    for example, other in zip(examples, lost, strict=True):
        # The last answer alone: earlier turns are given to both.
        both = [encode(tokenizer, [last_answer_only(side)], **settings)[0] for side in (example, other)]
        if not all(both):
            unfit += 1
            continue
        (won, *_), (beaten, *_) = both
        given = next(place for place, label in enumerate(won.labels) if label != IGNORED)
        pairs.append(Pair(won.input_ids[:given], _answer(won), _answer(beaten)))
        won_rows.append(won)
    _, audit = encode(tokenizer, [], **settings)
    audit.examples, audit.too_long = len(examples), unfit
    _count(audit, tokenizer, won_rows, set(stops))
    return pairs, audit


def last_answer_only(example: Example) -> Example:
    """The same conversation with earlier answers counted as given: only the last is learnt."""
    return replace(example, learn_from=len(example.messages) - 1)


def _answer(row: Row) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


# ---------------------------------------------------------------- all of them


def encode(
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    stops: Sequence[int],
    max_length: int | None = None,
    longest: int | None = None,
    template: str = OWN_TEMPLATE,
) -> tuple[list[Row], Audit]:
    """Rows of all examples, and the audit. Rows longer than `max_length` are dropped and counted, never cut.

    :param max_length: None: the 99th percentile of the lengths, rounded up to a multiple of 64.
    :param longest: what the model can read at most.
    """
    from jinja2 import TemplateError  # comes with the extra `local`

    audit = Audit(len(examples), template, 0, tokenizer.convert_ids_to_tokens(list(stops)))
    rows: list[Row] = []
    for example in examples:
        try:
            piece = _encode(tokenizer, example, stops)
        except (ValueError, TypeError, TemplateError):
            audit.unfit += 1
            continue
        rows += piece.rows
        audit.merged, audit.apart = audit.merged + piece.merged, audit.apart + piece.apart
        audit.stop_appended += piece.appended
    lengths = sorted(len(row.input_ids) for row in rows)
    audit.lengths = (
        {f"p{share}": lengths[min(len(lengths) - 1, len(lengths) * share // 100)] for share in (50, 95, 99)}
        if rows
        else {}
    )
    audit.lengths["longest"] = lengths[-1] if rows else 0
    wanted = max_length or -(-audit.lengths.get("p99", 0) // ROUND_TO) * ROUND_TO
    audit.max_length = min(wanted, longest) if longest else wanted
    kept = [row for row in rows if len(row.input_ids) <= audit.max_length]
    audit.too_long = len(rows) - len(kept)
    _count(audit, tokenizer, kept, set(stops))
    return kept, audit


def _count(audit: Audit, tokenizer: Any, rows: Sequence[Row], stops: set[int]) -> None:
    audit.rows = len(rows)
    audit.tokens = sum(len(row.input_ids) for row in rows)
    audit.answer_tokens = sum(row.answer_tokens for row in rows)
    for row in rows:
        learnt = [label for label in row.labels if label != IGNORED]
        audit.stopped += bool(learnt) and learnt[-1] in stops
        start = tokenizer.bos_token_id
        # A start token that also opens each turn (ChatML) is doubled only where it directly repeats.
        audit.doubled_start += start is not None and row.input_ids[:2] == [start, start]
    audit.shown = [show(tokenizer, row) for row in rows[:2]]


def show(tokenizer: Any, row: Row) -> str:
    """A row as text, what is learnt between ⟦ and ⟧."""
    pieces: list[str] = []
    start = 0
    for end in range(1, len(row.input_ids) + 1):
        learnt = row.labels[start] != IGNORED
        if end == len(row.input_ids) or (row.labels[end] != IGNORED) != learnt:
            text = tokenizer.decode(row.input_ids[start:end], clean_up_tokenization_spaces=False)
            pieces.append(f"⟦{text}⟧" if learnt else text)
            start = end
    return "".join(pieces)


def check(audit: Audit) -> None:
    """Refuse rows that would teach the wrong thing.

    :raises UsageError: with the counts, and what to change.
    """
    if audit.unfit > UNFIT_AT_MOST * audit.examples:
        raise UsageError(
            f"The chat template takes {audit.unfit} of {audit.examples} conversations not as they are (it refuses "
            "them, or writes something else before an answer): check roles and turns, or use another base."
        )
    if not audit.rows:
        raise UsageError(
            f"All {audit.too_long} rows are longer than --max-length {audit.max_length} (the median has "
            f"{audit.lengths.get('p50', 0)} tokens): raise it, or shorten the inputs."
        )
    if audit.stopped < STOPS_AT_LEAST * audit.rows and not audit.documents:
        raise UsageError(
            f"Only {audit.stopped} of {audit.rows} rows end with a stop token ({', '.join(audit.stop_tokens)}): "
            "the model would not learn to stop."
        )
    if audit.doubled_start:
        raise UsageError(f"{audit.doubled_start} of {audit.rows} rows begin with two start tokens: mend the template.")
    if not audit.answer_tokens:
        raise UsageError("There is no token to learn in any row.")


def describe(audit: Audit) -> list[str]:
    """The audit in lines for people."""
    lengths = ", ".join(f"{name} {value}" for name, value in audit.lengths.items())
    lines = [
        f"Rows: {audit.rows} from {audit.examples} examples; {audit.tokens} tokens, {audit.answer_tokens} learnt",
        f"Lengths: {lengths}; --max-length {audit.max_length} drops {audit.too_long}",
        f"Template: {audit.template}; {audit.stopped} of {audit.rows} rows teach a stop token"
        f" ({', '.join(audit.stop_tokens)})",
    ]
    notes = {
        "do not fit the template and are left out": audit.unfit,
        "were split token by token between question and answer": audit.merged,
        "became one row for each answer, for the template rewrites earlier turns": audit.apart,
        "got the stop token that the template leaves out": audit.stop_appended,
    }
    lines += [f"        {count} examples {what}" for what, count in notes.items() if count]
    lines += [f"Row {number} (learnt: between ⟦ and ⟧):\n{text}" for number, text in enumerate(audit.shown, start=1)]
    return lines
