"""The command that makes one good set out of several runs: merge, decontaminate, dedup across, choose.

    python -m pipeline.curate outputs/A outputs/B --out outputs/C --against heldout.jsonl --select 1000

It reads run folders, and plain files of Alpaca's shape that were made elsewhere (parents.py). In this order:

    exact merge          one record for equal ones, with all sources
    below_score          --min-score NAME=X
    contaminated         --against FILE: holds a benchmark's item (decontaminate.py)
    near_duplicate       nearly the same words as a better record (near_duplicates.py)
    semantic_duplicate   the same question in other words (semantic.py)
    not_selected         --select N: score first, diverse always (selection.py)

Of alike records the one with the higher --rank-by score stays, then the earlier one; every loser names it. What is
turned away is in rejected.jsonl with its reason. Nothing is asked of any model but the embedding model, which is local.
"""

from __future__ import annotations

import importlib.metadata
import math
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from pipeline.cli import run_deriving
from pipeline.decontaminate import CJK_CHARACTERS, SIMILARITY, WORDS, Benchmark, Item, load_items
from pipeline.errors import DONE, SHORT, UsageError
from pipeline.near_duplicates import THRESHOLD, band_keys, find_near_duplicates, fingerprint, text_of
from pipeline.parents import Parent, open_parent, read_parent
from pipeline.records import Neighbour, Record, Rejection
from pipeline.rows import file_hash
from pipeline.run_folder import DerivedFiles, locked, read_config, write_json
from pipeline.settings import nearest, setting
from pipeline.spool import Spool

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


def _given(value: tuple[Path, ...]) -> tuple[Path, ...]:
    if not value:
        raise ValueError("name at least one run folder or file")
    return value


Similarity = Annotated[float | None, BeforeValidator(_off)]
Scores = Annotated[dict[str, float], BeforeValidator(_scores)]
Parents = Annotated[tuple[Path, ...], AfterValidator(_given)]


class CurateSettings(BaseModel):
    """The flags of `pipeline.curate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    inputs: Parents = setting((), "deriving", "run folders, or files: jsonl, json, csv (.gz), parquet", metavar="INPUT")
    out: Path = setting(Path("outputs/curated"), "running", "the folder to make", metavar="DIR")
    min_score: Scores = setting({}, "deriving", "least scores: judge=4,fit=0.5", metavar="NAME=X")
    rank_by: str = setting("judge", "deriving", "the score by which one record is better than another", metavar="NAME")
    against: tuple[Path, ...] = setting((), "deriving", "benchmark files: jsonl, json, parquet, csv, txt", metavar="FILE")
    ngram_words: int = setting(WORDS, "deriving", "words in a row that give a benchmark item away", gt=1)
    ngram_cjk: int = setting(CJK_CHARACTERS, "deriving", "the same in CJK characters", gt=1)
    near_benchmark: float = setting(SIMILARITY, "deriving", "ROUGE-L with a benchmark question", gt=0, le=1)
    near_duplicates: Similarity = setting(
        THRESHOLD, "deriving", "Jaccard of 3-word runs, or off", metavar="X|off", gt=0, le=1
    )


# ---------------------------------------------------------------- the steps


@dataclass(frozen=True, slots=True)
class Loss:
    """Why the record at a place was turned away; its neighbour is a place, or an item of a benchmark."""

    filter: str
    reason: str
    value: float | str | None = None
    threshold: float | None = None
    neighbour: int | Neighbour | None = None


class Curation:
    """One curation: who is still in, who is out and why, and the funnel so far."""

    def __init__(self, settings: CurateSettings, spool: Spool, say: Callable[[str], None]) -> None:
        self.settings, self.spool, self._say = settings, spool, say
        self.lost: dict[int, Loss] = {}
        self.funnel: list[tuple[str, int]] = []  # step -> records left
        self.ranks = _by_rank(spool, settings.rank_by)

    def left(self) -> list[int]:
        """The places still in, in their order."""
        return [place for place in range(len(self.spool)) if place not in self.lost]

    def ranked(self) -> list[int]:
        """The places still in, the best first."""
        return [place for place in self.ranks if place not in self.lost]

    def step(self, name: str, lost: Mapping[int, Loss]) -> None:
        """Take a step's losses in, and say what is left."""
        self.lost.update(lost)
        left = len(self.spool) - len(self.lost)
        self.funnel.append((name, left))
        self._say(f"  {left:8} left; {len(lost)} {name}")

    def below_score(self, places: Sequence[int]) -> dict[int, Loss]:
        """Records without one of the --min-score scores, or below it."""
        lost = {}
        for place, record in zip(places, self.spool.records(places), strict=True):
            for name, least in self.settings.min_score.items():
                score = record.scores.get(name)
                if score is None or not score >= least:
                    said = f"no score {name!r}" if score is None else f"{name} {score:g}, below {least:g}"
                    lost[place] = Loss("below_score", said, score, least)
                    break
        return lost

    def contaminated(self, places: Sequence[int], items: Sequence[Item]) -> dict[int, Loss]:
        """Records that hold an item of a benchmark."""
        settings, lost = self.settings, {}
        benchmark = Benchmark(
            items, words=settings.ngram_words, cjk=settings.ngram_cjk, similarity=settings.near_benchmark
        )
        hits = benchmark.hits(self.spool.records(places))
        for place, (_, hit) in zip(places, hits, strict=True):
            if hit is None:
                continue
            neighbour = Neighbour(id=hit.item.id, text=hit.item.question)
            if hit.similarity is None:
                lost[place] = Loss("contaminated", f"shares {hit.shared!r} with {hit.item.id}", hit.shared, None, neighbour)
            else:
                said = f"ROUGE-L {hit.similarity:.3f} with the question of {hit.item.id}"
                value = round(hit.similarity, 4)
                lost[place] = Loss("contaminated", said, value, settings.near_benchmark, neighbour)
        return lost

    def near_duplicates(self, threshold: float) -> dict[int, Loss]:
        """Records in nearly the words of a better one."""
        keys = band_keys(map(text_of, self.spool.records()))
        found = find_near_duplicates(keys, self.ranked(), lambda place: fingerprint(self.spool[place]), threshold)
        return {
            place: Loss(
                "near_duplicate",
                f"{match.similarity:.3f} of its 3-word runs as in {self.spool[match.place].id}",
                round(match.similarity, 4),
                threshold,
                match.place,
            )
            for place, match in found.items()
        }

    def rejection(self, place: int, record: Record) -> Rejection:
        """A record that was turned away, as the line of rejected.jsonl."""
        loss = self.lost[place]
        neighbour = loss.neighbour
        if isinstance(neighbour, int):
            other = self.spool[neighbour]
            neighbour = Neighbour(id=other.id, text=f"{other.instruction}\n{other.input}".strip())
        return Rejection(
            stage="record",
            filter=loss.filter,
            reason=loss.reason,
            value=loss.value,
            threshold=loss.threshold,
            neighbour=neighbour,
            **record.model_dump(),
        )


def _by_rank(spool: Spool, name: str) -> list[int]:
    """All places, by score from the highest, then in order; those without the score last."""
    scores = array("d", (_finite(record.scores.get(name)) for record in spool.records()))
    return sorted(range(len(spool)), key=lambda place: -scores[place])


def _finite(score: float | None) -> float:
    return score if score is not None and math.isfinite(score) else -math.inf


# ---------------------------------------------------------------- the command


def curate(settings: CurateSettings, say: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    """Make the folder; returns its summary and the exit code. Raises UsageError before anything is written."""
    started = time.monotonic()
    _check_out(settings)
    parents = [open_parent(path) for path in settings.inputs]
    items = load_items(settings.against)
    with Spool(_existing(settings.out)) as spool:
        counts = _read_all(parents, spool)
        _check_scores(settings, counts)
        with locked(settings.out):
            say(f"  {counts.read:8} read, {counts.read - len(spool)} merged as exact duplicates")
            curation = Curation(settings, spool, say)
            _run_steps(curation, items)
            summary = _summary(curation, counts, started)
            _write(curation, parents, summary)
    kept = summary["kept"]
    say(f"Kept {kept} of {counts.read}. Records: {settings.out / 'records.jsonl'}; rejections, each with its reason: "
        f"{settings.out / 'rejected.jsonl'}.")  # fmt: skip
    if not kept:
        say(f"Nothing was kept; {settings.out / 'rejected.jsonl'} says why.")
        return summary, SHORT
    say(f"Next: read some of {settings.out / 'rejected.jsonl'}, then train: python -m finetune.run {settings.out}")
    return summary, DONE


def _run_steps(curation: Curation, items: Sequence[Item]) -> None:
    settings = curation.settings
    if settings.min_score:
        curation.step("below_score", curation.below_score(curation.left()))
    if settings.against:
        curation.step("contaminated", curation.contaminated(curation.left(), items))
    if settings.near_duplicates is not None:
        curation.step("near_duplicate", curation.near_duplicates(settings.near_duplicates))


@dataclass
class _Counts:
    read: int = 0
    scored: Counter[str] = None  # type: ignore[assignment]


def _read_all(parents: Sequence[Parent], spool: Spool) -> _Counts:
    counts = _Counts(scored=Counter())
    for parent in parents:
        for record in read_parent(parent):
            counts.read += 1
            counts.scored.update(record.scores.keys())
            spool.add(record)
    if not len(spool):
        raise UsageError("The inputs hold no record.")
    return counts


def _check_scores(settings: CurateSettings, counts: _Counts) -> None:
    for name in settings.min_score:
        if not counts.scored[name]:
            hint = nearest(name, counts.scored) if counts.scored else "they have no scores at all"
            raise UsageError(f"--min-score: no record has a score {name!r}; {hint}.")


def _check_out(settings: CurateSettings) -> None:
    """The folder must be new, or one that this command made."""
    out = settings.out
    if any(out.resolve() == path.resolve() for path in settings.inputs):
        raise UsageError(f"--out: {out} is one of the inputs; choose another folder.")
    config = read_config(out)
    maker = config.get("generator") if config is not None else None
    if maker != GENERATOR and (config is not None or (out / "records.jsonl").exists()):
        raise UsageError(f"--out: {out} is a run folder made by {maker or 'something else'}; choose another.")


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there: on the same disk, where scratch may lie without a trace."""
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _summary(curation: Curation, counts: _Counts, started: float) -> dict[str, Any]:
    lost = curation.lost
    return {
        "read": counts.read,
        "merged": counts.read - len(curation.spool),
        "funnel": dict(curation.funnel),
        "kept": len(curation.spool) - len(lost),
        "rejected": dict(Counter(loss.filter for loss in lost.values()).most_common()),
        "seconds": round(time.monotonic() - started, 1),
    }


def _write(curation: Curation, parents: Sequence[Parent], summary: dict[str, Any]) -> None:
    settings = curation.settings
    config = {
        "generator": GENERATOR,
        "parents": [parent.as_json() for parent in parents],
        "against": [{"path": str(path), "sha256": file_hash(path)} for path in settings.against],
        "shaping": {},  # nothing here enters a request
        "settings": settings.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in ("instructloop", "pydantic")},
    }
    with DerivedFiles(settings.out) as files:
        for place, record in enumerate(curation.spool.records()):
            if place in curation.lost:
                files.reject(curation.rejection(place, record))
            else:
                files.keep(record)
        write_json(settings.out / "config.json", config)
        files.publish(summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_deriving(CurateSettings, argv, command="pipeline.curate", about=__doc__ or "", work=curate)


if __name__ == "__main__":
    sys.exit(main())
