"""What a model does on tasks it was never trained on: answer loss, and the answers it writes.

Everything goes through the one chat renderer, so a model is asked here as it was trained and as it will be used.
Metrics are the standard libraries' (rouge_score, sacrebleu); Chinese is compared by characters, since words cut at
blanks give 0 there.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.bases import quiet
from finetune.data import Example, main_language
from finetune.rows import IGNORED, Row, encode_document
from pipeline.backends.chat_template import render_chat

PLAIN_TEXT = {"en": Path(__file__).with_name("plain_text.txt"), "zh": Path(__file__).with_name("plain_text_zh.txt")}
# A batch's. On a GPU a 7B model's cache takes half a megabyte a token, and 150,000 words' logits a third of one.
PADDED_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one answer: the sum over its tokens, in nats, and how many there are."""

    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote, how many tokens that took, and whether it stopped by itself."""

    text: str
    tokens: int
    stopped: bool


def mean_loss(losses: Sequence[Loss]) -> float:
    """Nats a token over all answers together, not a mean of means."""
    return sum(loss.nats for loss in losses) / max(1, sum(loss.tokens for loss in losses))


def answer_losses(model: Any, rows: Sequence[Row]) -> list[Loss]:
    """The loss of every row's answer, in the order of the rows."""
    import torch

    found: dict[int, Loss] = {}
    with torch.no_grad():
        for batch in _batches(model, [row.input_ids for row in rows]):
            longest = max(len(rows[number].input_ids) for number in batch)
            ids = [rows[number].input_ids + [0] * (longest - len(rows[number].input_ids)) for number in batch]
            labels = [rows[number].labels + [IGNORED] * (longest - len(rows[number].labels)) for number in batch]
            mask = [
                [1] * len(rows[number].input_ids) + [0] * (longest - len(rows[number].input_ids)) for number in batch
            ]
            at = {"device": model.device}
            logits = model(input_ids=torch.tensor(ids, **at), attention_mask=torch.tensor(mask, **at)).logits
            wanted = torch.tensor(labels, **at)[:, 1:]
            for place, number in enumerate(batch):  # one row's logits in fp32 at a time
                nats = torch.nn.functional.cross_entropy(
                    logits[place, -longest:-1].float(), wanted[place], ignore_index=IGNORED, reduction="sum"
                )
                found[number] = Loss(float(nats), rows[number].answer_tokens - (rows[number].labels[0] != IGNORED))
    return [found[number] for number in range(len(rows))]


def _batches(
    model: Any, sequences: Sequence[Sequence[int]], extra: int = 0, *, padded: bool = True
) -> Iterator[list[int]]:
    """Numbers of sequences that are read together, similar lengths with each other; unpadded, the same length."""
    limit = PADDED_TOKENS["cuda" if model.device.type == "cuda" else "cpu"]
    batch: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda number: len(sequences[number])):
        length = len(sequences[number])
        full = (len(batch) + 1) * (length + extra) > limit
        if batch and (full or (not padded and length != len(sequences[batch[0]]))):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def write_answers(
    model: Any, tokenizer: Any, tasks: Sequence[Example], *, stops: Sequence[int], max_new_tokens: int
) -> list[Reply]:
    """Greedy answers to all tasks, in their order."""
    import torch

    prompts = [render_chat(tokenizer, task.messages[:-1]) for task in tasks]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    found: dict[int, Reply] = {}
    # A soft prompt goes before the padding, and peft drops the positions that would tell it from text.
    padded = not getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    with torch.no_grad(), quiet():
        for batch in _batches(model, prompts, extra=max_new_tokens, padded=padded):
            longest = max(len(prompts[number]) for number in batch)
            ids = [[pad] * (longest - len(prompts[number])) + prompts[number] for number in batch]
            mask = [[0] * (longest - len(prompts[number])) + [1] * len(prompts[number]) for number in batch]
            at = {"device": model.device}
            out = model.generate(
                input_ids=torch.tensor(ids, **at), attention_mask=torch.tensor(mask, **at), do_sample=False,
                max_new_tokens=max_new_tokens, eos_token_id=list(stops), pad_token_id=pad,
            )  # fmt: skip
            for number, written in zip(batch, out.tolist(), strict=True):
                found[number] = _reply(
                    tokenizer, written[-(len(written) - longest) :] if len(written) > longest else [], stops
                )
    return [found[number] for number in range(len(tasks))]


def _reply(tokenizer: Any, ids: list[int], stops: Sequence[int]) -> Reply:
    end = next((place for place, id_ in enumerate(ids) if id_ in stops), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Reply(text.strip(), len(ids) if end is None else end + 1, end is not None)


def plain_text_loss(model: Any, tokenizer: Any, path: Path) -> float:
    """The loss on plain prose that nobody trained on: where it rises, the model forgets."""
    texts = [part for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    ids = [encode_document(tokenizer, text.strip()).input_ids[:longest] for text in texts]
    return mean_loss(answer_losses(model, [Row(row, row) for row in ids]))


# ---------------------------------------------------------------- what the answers are worth


class _Characters:
    """For rouge_score: every character but blanks is a word."""

    def tokenize(self, text: str) -> list[str]:
        return [char for char in text if not char.isspace()]


def scores(tasks: Sequence[Example], replies: Sequence[Reply]) -> dict[str, Any]:
    """ROUGE-L and BLEU (0 to 100), exact match for classification, stop rate, lengths."""
    wrong = [(task, reply) for task, reply in zip(tasks, replies, strict=True) if task.task == "classification"]
    exact = [_plain(task.answer) == _plain(reply.text) for task, reply in wrong]
    bleu, signature = _bleu(tasks, replies, main_language(tasks) == "zh")
    return {
        "rouge_l": 100
        * statistics.fmean(rouge_l(task, reply.text) for task, reply in zip(tasks, replies, strict=True)),
        "bleu": bleu,
        "bleu_signature": signature,
        "exact_match": statistics.fmean(exact) if exact else None,
        "classification_tasks": len(exact),
        "stop_rate": statistics.fmean(reply.stopped for reply in replies),
        "empty_rate": statistics.fmean(not reply.text for reply in replies),
        "mean_tokens": statistics.fmean(reply.tokens for reply in replies),
    }


def rouge_l(task: Example, text: str) -> float:
    """ROUGE-L's F, 0 to 1, with stemming as Super-NaturalInstructions has it; by characters for Chinese."""
    from rouge_score.rouge_scorer import RougeScorer

    if task.language == "zh":
        scorer = RougeScorer(["rougeL"], tokenizer=_Characters())
    else:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(task.answer, text)["rougeL"].fmeasure)


def _bleu(tasks: Sequence[Example], replies: Sequence[Reply], chinese: bool) -> tuple[float, str]:
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="zh" if chinese else "13a")
    score = metric.corpus_score([reply.text for reply in replies], [[task.answer for task in tasks]])
    return float(score.score), str(metric.get_signature())


def _plain(text: str) -> str:
    return text.strip().strip(".。!！").casefold()
