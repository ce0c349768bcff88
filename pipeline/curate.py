"""The command that makes one good set out of several runs: merge, decontaminate, dedup across, choose.

    python -m pipeline.curate outputs/A outputs/B --out outputs/C --against heldout.jsonl --select 1000

It reads run folders, and plain files of Alpaca's shape that were made elsewhere (parents.py). In this order:

    exact merge          one record for equal ones, with all sources
    contaminated         --against FILE: holds a benchmark's item (decontaminate.py)
    (scores)             --judge: of a model, for records that have none (judge_curated.py)
                         --ifd: of a local model's own losses (difficulty.py)
    poor                 --judge: below 4 of 5, or --min-score judge=X
    below_score          --min-score NAME=X; above_score: --max-score NAME=X
    near_duplicate       nearly the same words as a better record (near_duplicates.py)
    semantic_duplicate   the same question in other words (semantic.py)
    not_selected         --select N: score first, diverse always (selection.py)

Of alike records the one with the higher --rank-by score stays, then the earlier one; every loser names it. What is
turned away is in rejected.jsonl with its reason. Only --judge asks a model elsewhere; its verdicts are kept in a
journal, so the same command goes on where it was stopped, and --plan says what they would cost.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from pipeline import filters
from pipeline.cache import NAME as CACHE
from pipeline.cache import Cache
from pipeline.cli import Switches, run_deriving
from pipeline.curation import near_duplicates, semantic
from pipeline.curation.decontaminate import CJK_CHARACTERS, SIMILARITY, WORDS, Benchmark, Item, load_items
from pipeline.curation.embeddings import EmbeddingCache, EmbeddingModel
from pipeline.curation.parents import Parent, open_parent, read_parent
from pipeline.curation.rows import file_hash
from pipeline.curation.selection import KINDS, Quota, groups_of
from pipeline.curation.spool import Spool
from pipeline.curation.steps import Curation, Embedded
from pipeline.difficulty import MOST_TOKENS, SCORES, LossModel, score
from pipeline.errors import DONE, SHORT, UsageError
from pipeline.judge import CRITERIA, room_to_think
from pipeline.judge_curated import Judging
from pipeline.models import check_judge_is_asked
from pipeline.money import usd
from pipeline.records import Record
from pipeline.run_folder import DerivedFiles, check_maker, locked, write_json
from pipeline.settings import AskingSettings, nearest, resolved, setting

SHOW_EVERY_S = 15.0
JUDGE_SCORES = tuple("judge" if name == "score" else f"judge_{name}" for name in CRITERIA)
GENERATOR = "curate"  # what config.json says made the folder

# ---------------------------------------------------------------- settings


def _off(value: object) -> object:
    return None if value == "off" else value


def _scores(value: object) -> object:
    """ "judge=4,fit=0.5" as {"judge": 4.0, "fit": 0.5}."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    for name, equals, _ in pairs:
        if not equals:
            raise ValueError(f"{name.strip()!r} is not NAME=X")
    return {name.strip(): number for name, _, number in pairs}


_QUOTA = re.compile(r"(?P<kind>\w+)(?::(?P<value>.+))?=(?P<limit>\d+(?:\.\d+)?)(?P<share>%?)")


def _quotas(value: object) -> object:
    """ "source=20,task:classification=30%" as two quotas."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(part, str) for part in given):
        raise ValueError("not KIND=LIMIT or KIND:VALUE=LIMIT")
    quotas = []
    for part in ",".join(given).split(","):
        found = _QUOTA.fullmatch(part.strip())
        if found is None or found["kind"] not in KINDS:
            raise ValueError(f"{part!r} is not KIND=LIMIT or KIND:VALUE=LIMIT, with a kind of {', '.join(KINDS)}")
        share = bool(found["share"])
        limit = float(found["limit"]) / (100 if share else 1)
        quotas.append(Quota(found["kind"], found["value"], limit, share))
    return tuple(quotas)


Similarity = Annotated[float | None, BeforeValidator(_off)]
Scores = Annotated[dict[str, float], BeforeValidator(_scores)]
Quotas = Annotated[tuple[Quota, ...], BeforeValidator(_quotas)]


class CurateSettings(AskingSettings):
    """The flags of `pipeline.curate`."""

    inputs: tuple[Path, ...] = setting(
        (), "deriving", "run folders, or files: jsonl, json, csv (.gz), parquet", metavar="INPUT", positional=True
    )
    out: Path = setting(Path("outputs/curated"), "running", "the folder to make", metavar="DIR")
    min_score: Scores = setting({}, "deriving", "least scores: judge=4,fit=0.5", metavar="NAME=X")
    max_score: Scores = setting({}, "deriving", "highest scores: ifd=1,perplexity=50", metavar="NAME=X")
    rank_by: str = setting("judge", "deriving", "the score by which one record is better than another", metavar="NAME")
    against: tuple[Path, ...] = setting(
        (), "deriving", "benchmark files: jsonl, json, parquet, csv, txt", metavar="FILE"
    )
    ngram_words: int = setting(WORDS, "deriving", "words in a row that give a benchmark item away", gt=1)
    ngram_cjk: int = setting(CJK_CHARACTERS, "deriving", "the same in CJK characters", gt=1)
    near_benchmark: float = setting(SIMILARITY, "deriving", "ROUGE-L with a benchmark question", gt=0, le=1)
    near_duplicates: Similarity = setting(
        near_duplicates.THRESHOLD, "deriving", "Jaccard of 3-word runs, or off", metavar="X|off", gt=0, le=1
    )
    semantic_duplicates: Similarity = setting(
        semantic.THRESHOLD, "deriving", "cosine of embeddings, or off", metavar="X|off", gt=0, le=1
    )
    embedding_model: str | None = setting(
        None,
        "deriving",
        "a sentence-transformers model, by folder or name (none: the packaged one)",
        metavar="NAME|DIR",
    )
    embedding_languages: tuple[str, ...] = setting(
        (), "deriving", "what it knows, if its card does not say", metavar="en"
    )
    select: int | None = setting(None, "deriving", "choose N: score first, diverse always", gt=0)
    quota: Quotas = setting(
        (), "deriving", "at most, of --select: source=20,task:classification=30%%", metavar="KIND[:VALUE]=N|N%%"
    )
    judge: bool = setting(False, "running", "have a model score the records that have no score of a judge")
    judge_model: str | None = setting(
        None, "running", "the judge: a folder (local), a name (endpoint); none: the bundled model"
    )
    judge_base_url: str | None = setting(None, "running", "the judge's endpoint (none: OpenAI's)", metavar="URL")
    ifd: bool = setting(False, "deriving", "score all by a local model's losses: ifd, perplexity")
    ifd_model: Path | None = setting(None, "deriving", "that model (none: the bundled one)", metavar="DIR")


# ---------------------------------------------------------------- the command


def curate(settings: CurateSettings, switches: Switches) -> tuple[dict[str, Any], int]:
    """Make the folder; returns its summary and the exit code. Raises UsageError before anything is written."""
    _check(settings, switches)
    judging = None
    if settings.judge:
        judging = Judging(
            settings, settings.out, again=switches.again, say=switches.say, offline=switches.offline,
            retry_failed=switches.retry_failed,
        )  # fmt: skip
    summary = make_set(settings, switches.say, judging=judging, plan=switches.plan)
    return summary, DONE if switches.plan else _report(settings, summary, switches)


def make_set(
    settings: CurateSettings,
    say: Callable[[str], None],
    project: Path | None = None,
    judging: Judging | None = None,
    plan: bool = False,
) -> dict[str, Any]:
    """Make the set; returns its summary. A `project` is locked already, holds the cache, and may have no record.

    With `plan` nothing is made: what is returned says what `judging` would cost.
    """
    started = time.monotonic()
    if settings.judge and judging is None:
        raise UsageError("judge: a project's set is judged where its records are made; put it into a source instead.")
    parents = [open_parent(path) for path in settings.inputs]
    items = load_items(settings.against)
    model = None
    if settings.semantic_duplicates is not None:
        model = EmbeddingModel(settings.embedding_model, settings.embedding_languages)
    loss_model = LossModel(settings.ifd_model) if settings.ifd else None
    scratch = _existing(settings.out)
    with Spool(scratch) as spool:
        counts = _read_all(parents, spool, settings)
        if len(spool):
            _check_against_data(settings, counts)
        elif project is None:
            raise UsageError("The inputs hold no record.")
        say(f"  {len(spool):8} records: {counts.read} read, {counts.read - len(spool)} merged as exact duplicates")
        curation = Curation(spool, settings.rank_by, say)
        if plan and judging is not None:
            _step_contaminated(settings, curation, items)
            return judging.plan(record for _, record in _without_verdict(curation))
        with contextlib.ExitStack() as stack:
            if project is None:
                stack.enter_context(locked(settings.out))
            path = (project or settings.out) / CACHE
            cache = stack.enter_context(EmbeddingCache(path)) if model is not None else None
            _step_contaminated(settings, curation, items)
            if judging is not None:
                _write_config(settings, parents)  # from here on money is spent: the folder is ours
                judging.score(_without_verdict(curation), curation.add_scores)
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # the loop's end took it away
                if "judge" not in settings.min_score:
                    curation.step("poor", curation.poor(float(filters.ALL["poor"].threshold or 0)))
            if loss_model is not None:
                _add_losses(curation, loss_model, path)
            _step_scores(settings, curation)
            _run_steps(settings, curation, model, cache, scratch)
            summary = _summary(curation, counts, started, judging)
            _write(settings, curation, parents, summary)
    return summary


def _step_contaminated(settings: CurateSettings, curation: Curation, items: Sequence[Item]) -> None:
    """First of all, for it is free, and what it takes out need not be scored."""
    if settings.against:
        benchmark = Benchmark(
            items, words=settings.ngram_words, cjk=settings.ngram_cjk, similarity=settings.near_benchmark
        )
        curation.step("contaminated", curation.contaminated(benchmark))


def _without_verdict(curation: Curation) -> Iterator[tuple[int, Record]]:
    """What is to be judged, with its place."""
    for place in curation.left():
        record = curation.spool[place]
        if "judge" not in record.scores:
            yield place, record


def _add_losses(curation: Curation, model: LossModel, path: Path) -> None:
    """ifd and perplexity of all that are left, also of those that bring one along: two models' do not compare."""
    shown, without, left = time.monotonic(), 0, curation.left()

    def progress(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > SHOW_EVERY_S:
            shown = time.monotonic()
            curation.say(f"           (losses: {done} of {len(left)})")

    curation.spool.forget_scores(SCORES)
    records = ((place, curation.spool[place]) for place in left)
    with Cache(path) as cache:
        for place, scores in score(records, model, cache, progress):
            curation.add_scores(place, scores or dict.fromkeys(SCORES, math.nan))
            without += not scores
    if without:
        curation.say(f"           ({without} records have no ifd: no answer, or more than {MOST_TOKENS} tokens)")


def _step_scores(settings: CurateSettings, curation: Curation) -> None:
    if settings.min_score:
        curation.step("below_score", curation.below_score(settings.min_score))
    if settings.max_score:
        curation.step("above_score", curation.above_score(settings.max_score))


def _run_steps(
    settings: CurateSettings,
    curation: Curation,
    model: EmbeddingModel | None,
    cache: EmbeddingCache | None,
    scratch: Path,
) -> None:
    if settings.near_duplicates is not None:
        curation.step("near_duplicate", curation.near_duplicates(settings.near_duplicates))
    embedded = None
    if model is not None and cache is not None and settings.semantic_duplicates is not None:
        embedded = Embedded(curation, model, cache, scratch)
        curation.step("semantic_duplicate", curation.semantic_duplicates(embedded, settings.semantic_duplicates))
    if settings.select is not None:
        curation.step("not_selected", curation.not_selected(settings.select, settings.quota, embedded))


def _report(settings: CurateSettings, summary: dict[str, Any], switches: Switches) -> int:
    """The last lines; returns the exit code."""
    out, kept, say = settings.out, summary["kept"], switches.say
    if judged := summary["judge"]:
        say(
            f"Judged {judged['asked']} records, {judged['sent']} of them asked now; {judged['unreadable']} gave no"
            f" verdict{room_to_think(judged)}. Spent by this folder: {usd(judged['cost'])}."
        )
    say(f"Kept {kept} of {summary['read']}. Records: {out / 'records.jsonl'}; rejections: {out / 'rejected.jsonl'}.")
    if not kept:
        say(f"Nothing was kept; {out / 'rejected.jsonl'} says why. Loosen what took most, and run it again.")
        return SHORT
    if settings.select is not None and kept < settings.select:
        say(f"Short of --select {settings.select}: that is all there is, or all that the quotas allow.")
        say(f"Next: read {out / 'rejected.jsonl'}; loosen --min-score or --quota, or give more inputs.")
        return SHORT
    if judged and judged["missing"]:
        say(f"{judged['missing']} records have no verdict yet. Without --offline, go on with: {switches.again}")
        return SHORT
    say(f"Next: read some of {out / 'rejected.jsonl'}, then train: python -m finetune.run {out}")
    return DONE


@dataclass
class _Counts:
    """What was seen while reading."""

    read: int = 0
    scores: Counter[str] = field(default_factory=Counter)
    groups: set[tuple[str, str]] = field(default_factory=set)  # those that a quota names


def _read_all(parents: Sequence[Parent], spool: Spool, settings: CurateSettings) -> _Counts:
    counts = _Counts()
    named = {(quota.kind, quota.value) for quota in settings.quota if quota.value is not None}
    for parent in parents:
        for record in read_parent(parent):
            counts.read += 1
            counts.scores.update(record.scores.keys())
            if named:
                counts.groups |= named & groups_of(record)
            spool.add(record)
    return counts


def _check(settings: CurateSettings, switches: Switches) -> None:
    """The folder must be new, or one that this command made; quotas are of a selection."""
    out = settings.out
    if switches.plan and not settings.judge:
        raise UsageError("--plan: without --judge nothing is asked, so there is nothing to price.")
    if not settings.inputs:
        raise UsageError("Name at least one run folder or file.")
    for path in settings.inputs:
        if out.resolve() in (path.resolve(), path.resolve().parent):
            raise UsageError(f"--out: {out} holds one of the inputs; choose another folder.")
    check_judge_is_asked(settings, "--judge", asked=settings.judge)
    if check_maker(out, GENERATOR) is None and (out / "records.jsonl").exists():
        raise UsageError(f"--out: {out} is a run folder made by something else; choose another.")
    if settings.ifd_model is not None and not settings.ifd:
        raise UsageError("--ifd-model: names who measures --ifd; give --ifd too.")
    if settings.quota and settings.select is None:
        raise UsageError("--quota: a quota limits what --select chooses; give --select N too.")


def _check_against_data(settings: CurateSettings, counts: _Counts) -> None:
    """Names that nothing in the data has are mistakes."""
    counts.scores.update(JUDGE_SCORES if settings.judge else ())
    counts.scores.update(SCORES if settings.ifd else ())
    for name in (*settings.min_score, *settings.max_score):
        if not counts.scores[name]:
            hint = nearest(name, counts.scores) if counts.scores else "they have no scores at all"
            flag = "--min-score" if name in settings.min_score else "--max-score"
            raise UsageError(f"{flag}: no record has a score {name!r}; {hint}.")
    if settings.rank_by not in counts.scores and "rank_by" in settings.model_fields_set:
        raise UsageError(f"--rank-by: no record has a score {settings.rank_by!r}.")
    for quota in settings.quota:
        if quota.value is not None and (quota.kind, quota.value) not in counts.groups:
            raise UsageError(f"--quota: no record has the {quota.kind} {quota.value!r}.")


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there: on the same disk, where scratch may lie without a trace."""
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _summary(curation: Curation, counts: _Counts, started: float, judging: Judging | None) -> dict[str, Any]:
    lost = curation.lost
    return {
        "read": counts.read,
        "merged": counts.read - len(curation.spool),
        "funnel": dict(curation.funnel),
        "kept": len(curation.spool) - len(lost),
        "rejected": dict(Counter(loss.filter for loss in lost.values()).most_common()),
        "judge": judging.summary if judging is not None else None,
        "seconds": round(time.monotonic() - started, 1),
    }


def _write_config(settings: CurateSettings, parents: Sequence[Parent]) -> None:
    config = {
        "generator": GENERATOR,
        "parents": [parent.as_json() for parent in parents],
        "against": [{"path": str(path), "sha256": file_hash(path)} for path in settings.against],
        "shaping": {},  # nothing here is refused on a folder that is there: what differs is asked anew
        "settings": resolved(settings),
        "versions": {name: importlib.metadata.version(name) for name in ("instructloop", "pydantic")},
    }
    write_json(settings.out / "config.json", config)


def _write(settings: CurateSettings, curation: Curation, parents: Sequence[Parent], summary: dict[str, Any]) -> None:
    with DerivedFiles(settings.out) as files:
        for place, record in enumerate(curation.spool.records()):
            if place in curation.lost:
                files.reject(curation.rejection(place, record))
            else:
                files.keep(record)
        _write_config(settings, parents)
        files.publish(summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_deriving(CurateSettings, argv, command="pipeline.curate", about=__doc__ or "", work=curate)


if __name__ == "__main__":
    sys.exit(main())
