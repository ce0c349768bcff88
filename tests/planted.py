"""Good records, and copies of them spoilt in ten known ways: what bench_filters.py and test_planted.py count.

Every way has templates of its own in two halves: `tuned` ones, whose misses were looked at while the filters were made,
and `held_out` ones (every second), whose misses were not. Records are drawn and spoilt by a seeded random generator.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.curation.decontaminate import Benchmark, load_items
from pipeline.filtering import Candidate, apply_filters
from pipeline.filters import of_records
from pipeline.novelty import NoveltyIndex
from pipeline.records import Record, texts_of
from pipeline.text import language_of
from tests.conftest import a_record
from tests.fake_server import ROOT

FILTERS = of_records({})


def record(instruction: str, input_: str, output: str, language: str = "en") -> Record:
    return a_record(instruction, output, input=input_, language=language, generator="planted")


# ---------------------------------------------------------------- good records


def rows(path: Path) -> Iterator[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    yield from map(json.loads, data.decode("utf-8").splitlines())


def _whole(path: Path) -> list[Record]:
    return [record(row["instruction"], row["input"], row["output"]) for row in rows(path)]


def _tasks(path: Path, language: str) -> list[Record]:
    return [
        record(task["instruction"], instance.get("input", ""), instance["output"], language)
        for task in rows(path)
        for instance in task["instances"]
    ]


def _chinese_pairs(data: Path) -> list[Record]:
    """Real questions with real prose for an answer, though not their own: only their form is looked at here."""
    prose = [
        paragraph.strip()
        for path in sorted((data / "docs_zh").glob("*.txt"))
        for paragraph in path.read_text(encoding="utf-8").splitlines()
        if 60 <= len(paragraph) <= 400 and paragraph.strip().endswith("。") and language_of(paragraph) == "zh"
    ]
    questions = [row["instruction"] for row in rows(data / "instructions_zh.jsonl.gz")][:1000]
    return [record(question, "", prose[n % len(prose)], "zh") for n, question in enumerate(questions)]


def sources(data: Path) -> dict[str, list[Record]]:
    """Name -> whole records as if they were fresh: two sets that models wrote, and four that people did."""
    return {
        "alpaca_4k": _whole(data / "alpaca_4k.jsonl.gz"),
        "self_instruct_5k": _whole(data / "self_instruct_5k.jsonl.gz"),
        "user_oriented_252": _tasks(data / "user_oriented_252.jsonl", "en"),
        "seed_tasks_upstream": _tasks(data / "seed_tasks_upstream.jsonl", "en"),
        "our 175_zh": _tasks(ROOT / "seeds" / "175_zh.jsonl", "zh"),
        "instructions_zh with docs_zh": _chinese_pairs(data),
    }


def is_kept(candidate: Candidate) -> bool:
    return isinstance(apply_filters(FILTERS, candidate), Record)


# ---------------------------------------------------------------- spoiling them

Dice = random.Random
Spoil = Callable[[Record, Dice], Record | None]  # None: this record cannot be spoilt so


@dataclass(frozen=True)
class Way:
    """One template of a kind of defect, for one language."""

    kind: str
    language: str
    spoil: Spoil


def with_output(change: Callable[[str, Dice], str | None]) -> Spoil:
    def spoil(good: Record, dice: Dice) -> Record | None:
        output = change(good.output, dice)
        return None if output is None else remade(good, output=output)

    return spoil


def remade(good: Record, **texts: str) -> Record:
    old = {"instruction": good.instruction, "input_": good.input, "output": good.output}
    return record(**(old | texts), language=good.language)


# cut off: prose of two sentences or more, in which a reader sees it; lists and verse end as they like


def _cut(first: float, last: float, at: str) -> Spoil:
    def change(output: str, dice: Dice) -> str | None:
        stops = len(re.findall(r"[.!?](?:\s|$)|[。！？]", output))
        if len(output) < (120 if language_of(output) == "en" else 40) or stops < 2 or output.count("\n") > 1:
            return None
        if output.rstrip()[-1:] not in tuple(".!?。！？") or "```" in output:
            return None
        places = [m.start() for m in re.finditer(at, output) if first * len(output) <= m.start() <= last * len(output)]
        cut = output[: dice.choice(places)].rstrip() if places else ""
        return cut if cut and cut[-1] not in ".!?。！？:：\"”'’)）" else None

    return with_output(change)


CUTS = [_cut(0.4, 0.9, r"(?<=\w)\s|(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"), _cut(0.3, 0.9, r"(?<=\w)(?=\w)"),
        _cut(0.5, 0.99, r"(?<=[,，、])"), _cut(0.85, 0.99, r"(?<=\w)(?=\w)|\s")]  # fmt: skip

# empty, or an echo

EMPTY = ["", "   \n", "...", "N/A", "\u3000\u3000", "null", "\u200b", "No output", "-", "[Output]", "TBD", "nan", "……",
         "(empty)", '""', "Your answer here", "---", "n/a.", "***", "[insert answer here]"]  # fmt: skip
EMPTY_ZH = ["", "……", "（空）", "暂无", "。", "待补充", "\u3000", "（此处填写答案）", "无输出", "N/A"]


def _echo(change: Callable[[Record], str | None]) -> Spoil:
    def spoil(good: Record, _: Dice) -> Record | None:
        output = change(good)
        return remade(good, output=output) if output and len(good.instruction) >= 12 else None

    return spoil


ECHOES: list[Callable[[Record], str | None]] = [
    lambda good: good.input,
    lambda good: good.instruction,
    lambda good: good.instruction.upper(),
    lambda good: f"{good.instruction}\n{good.input}",
    lambda good: f"Output: {good.input}" if len(good.input) > 30 else None,
    lambda good: f'"{good.instruction}"',
    lambda good: good.instruction.rstrip(".。?？") + " …",
    lambda good: f"{good.instruction} {good.input}\n\n",
]

# looping


def _loop(text: str, times: int, keep: float = 0.0, numbered: bool = False, cut: int = 0) -> Spoil:
    def change(output: str, _: Dice) -> str | None:
        rounds = (f"{n}. {text}" if numbered else text for n in range(1, times + 1))
        looped = output[: int(keep * len(output))] + " " + "".join(rounds)
        return looped[: len(looped) - cut]

    return with_output(change)


def _again(times: int, joint: str) -> Spoil:
    return with_output(lambda output, _: joint.join([output] * times) if 30 < len(output) < 600 else None)


LOOPS = [
    _loop("the same ", 40), _loop("I will do it again. ", 15), _loop("It is good.\n", 12), _loop("very ", 60, keep=1),
    _loop("We should try to be kind and we should try to be fair. ", 8, keep=0.5), _loop("no, ", 50),
    _loop("Drink more water.\n", 14, numbered=True), _loop("ha", 60), _loop("and then ", 30, keep=1, cut=4),
    _again(5, "\n\n"), _loop("The cat sat on the mat. The dog lay by the door. ", 10, keep=0.3), _loop("!", 90, keep=1),
    _loop("Thank you. Thank you so much. ", 12, keep=1), _again(8, " "), _loop("so ", 45, keep=0.6),
    _loop("Answer the question with care.\n", 20, keep=0.2, cut=9),
]  # fmt: skip
LOOPS_ZH = [_loop("好的，", 30), _loop("我们要努力学习。", 12), _loop("哈", 60), _loop("非常", 40, keep=1),
            _loop("多喝水，多休息。\n", 12, numbered=True), _again(6, "\n"), _loop("然后再看一看，", 15, keep=0.5, cut=3),
            _loop("感谢您的支持与理解！", 10, keep=0.3)]  # fmt: skip

# another language

FOREIGN = [
    "今天的会议讨论了下一季度的计划，大家一致同意先改善产品质量，再考虑扩大市场，细节会在下周公布。",
    "La réunion de ce matin a porté sur le budget, et nous avons décidé de reporter les achats à l'automne prochain.",
    "Heute haben wir lange über den Haushalt gesprochen und beschlossen, die Anschaffungen auf den Herbst zu verschieben.",
    "En la reunión de hoy hablamos del presupuesto y decidimos dejar las compras para el otoño, cuando haya más dinero.",
    "Nella riunione di oggi abbiamo parlato del bilancio e deciso di rimandare gli acquisti all'autunno prossimo.",
    "Сегодня на собрании мы обсудили бюджет и решили отложить покупки до осени, когда появятся новые средства.",
    "今日の会議では予算について話し合い、買い物は秋まで待つことに決めました。詳しいことは来週お知らせします。",
    "Na reunião de hoje falámos do orçamento e decidimos adiar as compras para o outono, quando houver mais dinheiro.",
    "오늘 회의에서 우리는 예산에 대해 이야기했고 구매를 가을까지 미루기로 결정했습니다.",
    "Tijdens de vergadering van vandaag hebben wij over de begroting gesproken en de aankopen tot het najaar uitgesteld.",
    "ناقشنا في اجتماع اليوم الميزانية وقررنا تأجيل المشتريات إلى الخريف القادم عندما تتوفر الأموال.",
    "På mötet i dag talade vi om budgeten och bestämde oss för att vänta med inköpen till hösten när det finns pengar.",
    "Bugünkü toplantıda bütçeyi konuştuk ve alışverişi para gelince sonbahara ertelemeye hep birlikte karar verdik.",
    "Na dzisiejszym zebraniu rozmawialiśmy o budżecie i postanowiliśmy odłożyć zakupy do jesieni, kiedy będą pieniądze.",
]
FOREIGN_ZH = [
    "At today's meeting we spoke about the budget and decided to put off all purchases until the autumn.",
    *FOREIGN[1:4], *FOREIGN[5:7], FOREIGN[8], "Thank you for writing to us; we will look into the matter and answer soon.",
]  # fmt: skip

# refusals

REFUSALS = [
    "As an AI language model, I don't have personal preferences, but many people like it.",
    "I'm sorry, but I can't assist with that.",
    "I cannot fulfill this request as it goes against my guidelines.",
    "Unfortunately, I am not able to browse the internet, so I can't say what is new.",
    "I apologize, but I am unable to provide an answer to this question.",
    "Sorry, I can't help you with this one.",
    "I'm just a language model and cannot feel things.",
    "I do not have access to your files, so I cannot tell.",
    "It is not possible for me to complete this task without further details.",
    "I must decline to write such a text.",
    "My apologies, but I'm not able to generate images.",
    "That is beyond my capabilities as I only work with words.",
    "I don't have enough information to answer. Could you give me more context?",
    "I'm afraid I cannot comply with this request.",
    "Being an AI, I have no memories of my own.",
    "I won't be able to help with creating this content.",
    "I can't provide medical advice. Please see a doctor.",
    "I don't have the ability to open links.",
    "I am an AI assistant, so I have never been to Paris.",
    "Regrettably, I can't access real-time data at the moment.",
    "I'm not able to view the picture you mention.",
    "It would not be appropriate for me to take a side here.",
    "As a large language model trained on text, I can't taste food.",
    "I'm really sorry, but I won't be able to complete the request as written.",
]
REFUSALS_ZH = [
    "作为一个人工智能语言模型，我没有个人喜好。", "很抱歉，我无法回答这个问题。", "抱歉，我不能提供此类内容。",
    "对不起，我没有办法访问互联网。", "我是一个AI助手，无法亲身体验。我只是一个语言模型，没有感情。",
    "非常抱歉，这超出了我的能力范围。", "作为AI助手，我不便对此发表看法。", "我无法提供医疗建议，请咨询医生。",
    "很遗憾，我目前不能完成这项任务。", "恕我无法协助完成这个请求。", "不好意思，我不会生成图片。", "我不能帮助您撰写这样的内容。",
]  # fmt: skip

# pieces of prompts, and templates

LEAKS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Response:", "### Instruction:\nName a fruit.\n### Response:\nAn apple.", "You are a helpful assistant.",
    "Answer with JSON: an object whose \"instructions\" is a list of strings.", "## Input:\nnone\n## Output:",
    "Come up with a series of tasks:\n1. Name a fruit.", "\n;;\n14. Instruction: Name a fruit.\n14. Input:",
    "Task: $instruction\nExamples wanted, at most: $count", "You are an AI assistant that follows instructions well.",
    "\nUser: And what about pears?\nAssistant: They are fine, too.", "<noinput>",
    "A chat between a curious user and an artificial intelligence assistant.", "System prompt: be brief and polite.",
    "You write classification tasks: an assistant is to choose one of a few labels for something it is given.",
    "\nHuman: Thanks! One more thing.", "For a task you write worked examples: first the input that someone would hand over",
    "{instruction}\n{input}", "### Human: hello\n### Assistant: hi", "You are ChatGPT, a large language model.",
]  # fmt: skip
LEAKS_ZH = [
    "你是一个有用的助手。", "用 JSON 回答：一个对象，其中 \"instances\" 是对象列表。", "### 指令：\n说出一种水果。\n### 回答：\n苹果。",
    "你判断一个任务是不是分类任务，也就是所有正确答案是否都出自一小组固定的标签。", "以下是一个描述任务的指令。", "例子数上限：5",
    "\n用户：那梨呢？\n助手：也不错。", "先写使用者会一并提供的输入，要具体、完整；再写正确而完整的输出。",
    "系统提示：回答要简短。", "请以JSON格式返回结果。",
]  # fmt: skip

TOKENS = [
    "<|im_end|>", "<|im_start|>assistant", "<|eot_id|>", "<|start_header_id|>user<|end_header_id|>", "[/INST]", "[INST]",
    "<</SYS>>", "<end_of_turn>", "<start_of_turn>model", "</s>", "<|endoftext|>", "<|assistant|>", "<|begin_of_text|>",
    "<bos>", "<eos>", "<｜end▁of▁sentence｜>", "<|eom_id|>", "[TOOL_CALLS]", "<|END_OF_TURN_TOKEN|>", "<think>", "<unk>",
    "<|user|>", "<pad>", "<|fim_middle|>", "[AVAILABLE_TOOLS]", "<|python_tag|>", "<tool_call>", "[gMASK]", "<unused17>",
    "<reserved_106>", "<fim_prefix>", "<extra_id_0>", "<|reserved_special_token_3|>", "<sop>",
]  # fmt: skip


def _placed(piece: str, *, whole: bool = False) -> Spoil:
    """The piece before, behind or inside the output; for tokens, in any text of the record."""

    def spoil(good: Record, dice: Dice) -> Record | None:
        if whole and dice.random() < 0.3:
            return remade(good, instruction=f"{good.instruction} {piece}")
        if piece.startswith("\n") or dice.random() < 0.5:
            return remade(good, output=f"{good.output}{'' if whole else chr(10)}{piece}")
        return remade(good, output=f"{piece}{' ' if whole else chr(10)}{good.output}")

    return spoil


# secrets and personal data

_LETTERS, _HEX = string.ascii_letters + string.digits, "0123456789abcdef"


def _drawn(dice: Dice, letters: str, number: int) -> str:
    return "".join(dice.choice(letters) for _ in range(number))


PRIVATE: list[Callable[[Dice], str]] = [
    lambda d: f"Write to {_drawn(d, string.ascii_lowercase, 7)}.{_drawn(d, string.ascii_lowercase, 5)}@gmail.com.",
    lambda d: f"Use the key sk-{_drawn(d, _LETTERS, 40)} for it.",
    lambda d: f"export AWS_ACCESS_KEY_ID=AKIA{_drawn(d, string.ascii_uppercase + string.digits, 16)}",
    lambda d: (
        f"Mail {_drawn(d, string.ascii_lowercase, 9)}{d.randint(10, 99)}@{_drawn(d, string.ascii_lowercase, 6)}.co.uk"
    ),
    lambda d: f"git clone https://bot:ghp_{_drawn(d, _LETTERS, 36)}@github.com/a/b",
    lambda d: f"Call +{d.randint(20, 69)} {d.randint(100, 999)} {d.randint(100, 999)} {d.randint(1000, 9999)} tonight.",
    lambda d: f"The phone is ({d.randint(201, 989)}) {d.randint(201, 989)}-{d.randint(1000, 9999)}.",
    lambda d: f"token = xoxb-{_drawn(d, string.digits, 11)}-{_drawn(d, _LETTERS, 24)}",
    lambda d: f"-----BEGIN RSA PRIVATE KEY-----\nMIIE{_drawn(d, _LETTERS, 60)}",
    lambda d: f"api_key: AIza{_drawn(d, _LETTERS, 35)}",
    lambda d: f"The card is {_card(d)}.",
    lambda d: f"login with hf_{_drawn(d, _LETTERS, 34)}",
    lambda d: f"postgresql://admin:{_drawn(d, _LETTERS, 10)}@db.internal:5432/main",
    lambda d: f"STRIPE_KEY=sk_live_{_drawn(d, _LETTERS, 24)}",
    lambda d: (
        f"Contact: {_drawn(d, string.ascii_lowercase, 6)}_{d.randint(1, 99)}@{_drawn(d, string.ascii_lowercase, 5)}.org"
    ),
    lambda d: f"Her social security number is {d.randint(100, 665)}-{d.randint(10, 99)}-{d.randint(1000, 9999)}.",
    lambda d: f"password = '{_drawn(d, _LETTERS, 14)}{d.randint(0, 9)}!'",
    lambda d: f"glpat-{_drawn(d, _LETTERS, 20)}",
]
PRIVATE_ZH: list[Callable[[Dice], str]] = [
    lambda d: f"请联系{_drawn(d, string.ascii_lowercase, 6)}{d.randint(10, 99)}@qq.com。",
    lambda d: f"我的手机号是1{d.choice('3578')}{d.randint(100000000, 999999999)}。",
    lambda d: f"身份证号：{_identity(d)}。",
    lambda d: f"密钥是sk-{_drawn(d, _LETTERS, 40)}，请保密。",
    lambda d: f"邮箱：{_drawn(d, string.ascii_lowercase, 8)}@163.com，欢迎来信。",
    lambda d: f"电话13{d.randint(0, 9)} {d.randint(1000, 9999)} {d.randint(1000, 9999)}，随时可打。",
]


def _card(dice: Dice) -> str:
    digits = [4, *(dice.randint(0, 9) for _ in range(14))]
    total = sum(sum(divmod(2 * d, 10)) if place % 2 == 0 else d for place, d in enumerate(digits))
    number = "".join(map(str, [*digits, -total % 10]))
    return " ".join(number[n : n + 4] for n in range(0, 16, 4))


def _identity(dice: Dice) -> str:
    body = f"{dice.choice(('110105', '310101', '440304'))}19{dice.randint(50, 99)}0{dice.randint(1, 9)}1{dice.randint(0, 9)}"
    body += f"{dice.randint(100, 999)}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body, strict=True)) % 11]


def _private(make: Callable[[Dice], str]) -> Spoil:
    def spoil(good: Record, dice: Dice) -> Record | None:
        said = make(dice)
        if good.input and dice.random() < 0.3:
            return remade(good, input_=f"{good.input}\n{said}")
        return remade(good, output=f"{good.output}\n{said}")

    return spoil


# near copies, and items of a benchmark: what is spoilt is the question


def _words(text: str) -> list[str]:
    return text.split() if language_of(text) == "en" else list(text)


def _joined(words: Sequence[str], like: str) -> str:
    return (" " if language_of(like) == "en" else "").join(words)


def _reworded(change: Callable[[list[str], Dice], list[str]]) -> Spoil:
    def spoil(good: Record, dice: Dice) -> Record | None:
        words = _words(good.instruction)
        if len(words) < 5:
            return None
        return remade(good, instruction=_joined(change(words, dice), good.instruction))

    return spoil


def _swap(words: list[str], dice: Dice) -> list[str]:
    at = dice.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _instead(words: list[str], dice: Dice) -> list[str]:
    at = dice.randrange(len(words))
    return [*words[:at], "thing" if words[at].isascii() else "物", *words[at + 1 :]]


def _without(words: list[str], dice: Dice) -> list[str]:
    at = dice.randrange(len(words))
    return words[:at] + words[at + 1 :]


COPIES = [
    _reworded(lambda words, _: words), _reworded(lambda words, _: [w.upper() for w in words]),
    _reworded(_instead), _reworded(_without), _reworded(_swap), _reworded(lambda words, _: [*words, "!"]),
    _reworded(lambda words, _: ["Please" if words[0].isascii() else "请", *words]),
    _reworded(lambda words, dice: _swap(words, dice)[: len(words)]),
]  # fmt: skip


def ways() -> list[Way]:
    """All templates but those of near copies and benchmark items, each kind's in their order."""
    found = [Way("cut off", language, cut) for cut in CUTS for language in ("en", "zh")]
    for language, empty in (("en", EMPTY), ("zh", EMPTY_ZH)):
        found += [Way("empty or echo", language, with_output(lambda _, __, text=text: text)) for text in empty]  # type: ignore[misc]
        found += [Way("empty or echo", language, _echo(change)) for change in ECHOES]
    for kind, english, chinese in (
        ("looping", LOOPS, LOOPS_ZH),
        ("refusal", [_instead_of(text) for text in REFUSALS], [_instead_of(text) for text in REFUSALS_ZH]),
        ("wrong language", [_instead_of(text) for text in FOREIGN], [_instead_of(text) for text in FOREIGN_ZH]),
        ("leaked prompt", [_placed(text) for text in LEAKS], [_placed(text) for text in LEAKS_ZH]),
        ("control token", [_placed(t, whole=True) for t in TOKENS], [_placed(t, whole=True) for t in TOKENS]),
        ("secret or address", [_private(make) for make in PRIVATE], [_private(make) for make in PRIVATE_ZH]),
    ):
        found += [Way(kind, "en", spoil) for spoil in english] + [Way(kind, "zh", spoil) for spoil in chinese]
    return found


def _instead_of(text: str) -> Spoil:
    return with_output(lambda _, __: text)


@dataclass(frozen=True)
class Planted:
    """A spoilt record, and whether its template was held out."""

    kind: str
    language: str
    held_out: bool
    template: int
    record: Record


def plant(good: dict[str, list[Record]], a_template: int = 40, seed: int = 0) -> Iterator[Planted]:
    """So many good records spoilt by every template. `good` holds records by language."""
    numbers: dict[tuple[str, str], int] = {}
    for way in ways():
        number = numbers[way.kind, way.language] = numbers.get((way.kind, way.language), -1) + 1
        dice = random.Random(f"{seed}:{way.kind}:{way.language}:{number}")
        made = 0
        for one in dice.sample(good[way.language], len(good[way.language])):
            spoilt = way.spoil(one, dice)
            if spoilt is not None and spoilt.id != one.id:
                yield Planted(way.kind, way.language, number % 2 == 1, number, spoilt)
                made += 1
                if made == a_template:
                    break


def is_caught(planted: Planted) -> bool:
    """Whether the filters turn it away, or mend what was wrong with it."""
    judged = apply_filters(FILTERS, Candidate(planted.record, [planted.record]))
    if not isinstance(judged, Record):
        return True
    before, after = dict(texts_of(planted.record)), dict(texts_of(judged))
    return planted.kind == "secret or address" and any("[" in after[k] and after[k] != before[k] for k in after)


def cut_by_the_limit(good: Record) -> Candidate:
    """As the endpoint says it: whatever the text looks like."""
    half = remade(good, output=good.output[: len(good.output) // 2])
    return replace(Candidate(half, [half]), cut=True)


# ---------------------------------------------------------------- near copies, and items of a benchmark

Outcome = tuple[str, bool, bool]  # kind, held out, caught
POOL = 1500  # instructions that are kept before the copies come


def copies(good: dict[str, list[Record]], a_template: int = 60, seed: int = 0) -> Iterator[Outcome]:
    """Copies of kept instructions with one change each, offered to Self-Instruct's pool."""
    for language, records in good.items():
        dice = random.Random(f"{seed}:copies:{language}")
        pool = NoveltyIndex(0.7)
        chosen = dice.sample(records, min(POOL, len(records)))
        for one in chosen:
            if pool.nearest(one.instruction) is None:
                pool.add(one.instruction, one.id)
        for number, spoil in enumerate(COPIES):
            spoilt = (spoil(one, dice) for one in dice.sample(chosen, len(chosen)))
            for copy in islice(filter(None, spoilt), a_template):
                yield "near copy", number % 2 == 1, pool.nearest(copy.instruction) is not None


def _in_output(item: Record, good: Record) -> Record:
    return remade(good, output=f"{good.output}\n\n{item.instruction} {item.input}")


BENCHMARK: list[Callable[[Record, Record, Dice], Record]] = [
    lambda item, good, _: remade(good, instruction=item.instruction, input_=item.input),
    lambda item, good, _: remade(good, instruction=item.instruction.lower(), input_=item.input.lower()),
    lambda item, good, _: _in_output(item, good),
    lambda item, good, _: remade(good, input_=f"{item.instruction}\n{item.input}"),
    lambda item, good, d: remade(good, instruction=_joined(_instead(_words(item.instruction), d), item.instruction),
                                 input_=item.input),
    lambda item, good, _: remade(good, instruction=f"Question 7. {item.instruction}\n{item.input}", input_=""),
]  # fmt: skip


def items_of(found: dict[str, list[Record]], good: dict[str, list[Record]], scratch: Path) -> Iterator[Outcome]:
    """Items of a benchmark put into good records. Questions too short to be told from any other are left out."""
    for language, name in (("en", "user_oriented_252"), ("zh", "our 175_zh")):
        items = found[name]
        path = scratch / f"{language}.jsonl"
        lines = (json.dumps({"instruction": i.instruction, "input": i.input, "output": i.output}) for i in items)
        path.write_text("\n".join(lines), encoding="utf-8")
        benchmark = Benchmark(load_items([path]))
        carriers = [one for one in good[language] if one not in items]
        long = [
            item for item in items if len(_words(f"{item.instruction} {item.input}")) >= (9 if language == "en" else 15)
        ]
        for number, put in enumerate(BENCHMARK):
            dice = random.Random(f"benchmark:{language}:{number}")
            spoilt = [put(item, dice.choice(carriers), dice) for item in dice.sample(long, min(80, len(long)))]
            for _, hit in benchmark.hits(spoilt):
                yield "benchmark item", number % 2 == 1, hit is not None


def tally(good: dict[str, list[Record]], found: dict[str, list[Record]], scratch: Path) -> dict[Outcome, int]:
    """How many of each kind were planted, tuned and held-out templates apart, caught and not caught apart."""
    filtered = ((one.kind, one.held_out, is_caught(one)) for one in plant(good))
    return Counter((*filtered, *copies(good), *items_of(found, good, scratch)))


def kept_of(records: list[Record]) -> list[Record]:
    """Those that the record filters keep."""
    return [one for one in records if is_kept(Candidate(one, [one]))]


def not_new(records: list[Record]) -> int:
    """How many instructions are no news beside those before them; a task's further instances are not counted."""
    pool, lost = NoveltyIndex(0.7), 0
    for instruction in dict.fromkeys(one.instruction for one in records):
        if pool.nearest(instruction) is None:
            pool.add(instruction, instruction)
        else:
            lost += 1
    return lost
