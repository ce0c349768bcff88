"""The steps of a curation: each takes the records still in, and says which are out and why.

`pipeline.curate` is the command that runs them in order. Only places (numbers) and losses are in memory here; the
records are in the spool, read back as they are needed.
"""

from __future__ import annotations

import math
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.curation.decontaminate import Benchmark
from pipeline.curation.embeddings import EmbeddingCache, EmbeddingModel
from pipeline.curation.near_duplicates import Match, band_keys, find_near_duplicates, fingerprint, text_of
from pipeline.curation.selection import Quota, select
from pipeline.curation.semantic import QuestionLikeness, find_semantic_duplicates, question_of
from pipeline.curation.shingles import batches
from pipeline.curation.spool import Spool
from pipeline.records import Neighbour, Record, Rejection

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_BATCH = 1024  # records
_SHOW_EVERY_S = 15.0


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

    def __init__(self, spool: Spool, rank_by: str, say: Callable[[str], None]) -> None:
        self.spool, self.say = spool, say
        self.lost: dict[int, Loss] = {}
        self.funnel: list[tuple[str, int]] = []  # step -> records left
        self._rank_by = rank_by
        self._scores = array("d", (_finite(record.scores.get(rank_by)) for record in spool.records()))

    def left(self) -> list[int]:
        """The places still in, in their order."""
        return [place for place in range(len(self.spool)) if place not in self.lost]

    def ranked(self) -> list[int]:
        """The places still in, the best first."""
        return sorted(self.left(), key=lambda place: -self._scores[place])

    def step(self, name: str, lost: Mapping[int, Loss]) -> None:
        """Take a step's losses in, and say what is left."""
        self.lost.update(lost)
        left = len(self.spool) - len(self.lost)
        self.funnel.append((name, left))
        self.say(f"  {left:8} left; {len(lost)} {name}")

    def add_scores(self, place: int, scores: Mapping[str, float]) -> None:
        """Scores that were found out only now."""
        for name, score in scores.items():
            self.spool.add_score(name, place, score)
            if name == self._rank_by:
                self._scores[place] = _finite(score)

    def below_score(self, least: Mapping[str, float]) -> dict[int, Loss]:
        """Records without one of these scores, or below it."""

        def loss(record: Record) -> Loss | None:
            for name, at_least in least.items():
                score = record.scores.get(name)
                if score is None or not score >= at_least:
                    said = f"no score {name!r}" if score is None else f"{name} {score:g}, below {at_least:g}"
                    return Loss("below_score", said, score, at_least)
            return None

        return self._each(loss)

    def above_score(self, most: Mapping[str, float]) -> dict[int, Loss]:
        """Records that have one of these scores, and above it; one without passes."""

        def loss(record: Record) -> Loss | None:
            for name, at_most in most.items():
                score = record.scores.get(name)
                if score is not None and score > at_most:
                    return Loss("above_score", f"{name} {score:g}, above {at_most:g}", score, at_most)
            return None

        return self._each(loss)

    def poor(self, below: float) -> dict[int, Loss]:
        """Records that a judge scored below the limit; one without a verdict passes, as in a run."""

        def loss(record: Record) -> Loss | None:
            score = record.scores.get("judge")
            if score is None or score >= below:
                return None
            return Loss("poor", f"the judge gave {score:g} of 5, below {below:g}", score, below)

        return self._each(loss)

    def _each(self, loss: Callable[[Record], Loss | None]) -> dict[int, Loss]:
        """What is lost of the records still in, each looked at by itself."""
        places = self.left()
        found = zip(places, map(loss, self.spool.records(places)), strict=True)
        return {place: its_loss for place, its_loss in found if its_loss is not None}

    def contaminated(self, benchmark: Benchmark) -> dict[int, Loss]:
        """Records that hold an item of a benchmark."""
        lost = {}
        places = self.left()
        for place, (_, hit) in zip(places, benchmark.hits(self.spool.records(places)), strict=True):
            if hit is None:
                continue
            said = f"shares {hit.shared!r} with {hit.item.id}"
            value: float | str = hit.shared
            threshold = None
            if hit.similarity is not None:
                said = f"ROUGE-L {hit.similarity:.3f} with the question of {hit.item.id}"
                value, threshold = round(hit.similarity, 4), benchmark.similarity
            neighbour = Neighbour(id=hit.item.id, text=hit.item.question)
            lost[place] = Loss("contaminated", said, value, threshold, neighbour)
        return lost

    def near_duplicates(self, threshold: float) -> dict[int, Loss]:
        """Records in nearly the words of a better one."""
        keys = band_keys(map(text_of, self.spool.records()))
        found = find_near_duplicates(keys, self.ranked(), lambda place: fingerprint(self.spool[place]), threshold)
        return self._duplicates("near_duplicate", "wording", found, threshold)

    def semantic_duplicates(self, embedded: Embedded, threshold: float) -> dict[int, Loss]:
        """Records that ask what a better one asks, in other words."""
        likeness = QuestionLikeness(lambda place: self.spool[place], embedded.instruction_cosine)
        ranked = [place for place in self.ranked() if place in embedded.places]
        found = find_semantic_duplicates(embedded.vectors, ranked, threshold, likeness)
        if found.recall < 1:
            self.say(f"           (an index, not every pair: it finds {found.recall:.1%} of them, by a sample)")
        return self._duplicates("semantic_duplicate", "meaning", found.lost, threshold)

    def _duplicates(self, filter_: str, what: str, found: Mapping[int, Match], threshold: float) -> dict[int, Loss]:
        lost = {}
        for place, match in found.items():
            said = f"{match.similarity:.3f} alike in {what} to {self.spool[match.place].id}"
            lost[place] = Loss(filter_, said, round(match.similarity, 4), threshold, match.place)
        return lost

    def not_selected(self, wanted: int, quotas: Sequence[Quota], embedded: Embedded | None) -> dict[int, Loss]:
        """All but the chosen ones. Of equal scores the id decides, a hash, so that no input comes first."""
        ranked = sorted(self.left(), key=lambda place: (-self._scores[place], self.spool.hashes[place]))
        vectors, places = (None, set()) if embedded is None else (embedded.vectors, embedded.places)
        selection = select(ranked, wanted, lambda place: self.spool[place], vectors, places, quotas)
        lost = {}
        for place, why in selection.left_out.items():
            said, value, near = f"not among the {len(selection.chosen)} chosen", None, None
            if why.quota:
                said = f"the quota of {why.quota} was full"
            elif why.nearest is not None:
                value, near = round(why.nearest[0], 4), why.nearest[1]
                said += f"; {value:.3f} alike to {self.spool[near].id}, which was"
            lost[place] = Loss("not_selected", said, value, None, near)
        return lost

    def rejection(self, place: int, record: Record) -> Rejection:
        """A record that was turned away, as the line of rejected.jsonl."""
        loss = self.lost[place]
        neighbour = loss.neighbour
        if isinstance(neighbour, int):
            other = self.spool[neighbour]
            neighbour = Neighbour(id=other.id, text=question_of(other))
        return Rejection(
            stage="record",
            filter=loss.filter,
            reason=loss.reason,
            value=loss.value,
            threshold=loss.threshold,
            neighbour=neighbour,
            **record.model_dump(),
        )


class Embedded:
    """The embeddings of the questions of all records that the model can read: in its language, and not too long.

    They lie in a scratch file without a name, mapped into memory: the system keeps of it what fits.
    """

    def __init__(self, curation: Curation, model: EmbeddingModel, cache: EmbeddingCache, scratch: Path) -> None:
        import numpy as np

        self._model, self._cache = model, cache
        shape = (len(curation.spool), model.dimension)
        with tempfile.TemporaryFile(dir=scratch) as file:  # the map outlives it
            self.vectors: NDArray[numpy.float16] = np.memmap(file, np.float16, "w+", shape=shape)
        self.places: set[int] = set()
        foreign: Counter[str] = Counter()
        too_long = 0
        shown, left = time.monotonic(), curation.left()
        for number, batch in enumerate(batches(left, _BATCH)):
            if time.monotonic() - shown > _SHOW_EVERY_S:
                shown = time.monotonic()
                curation.say(f"           (embeddings: {number * _BATCH} of {len(left)})")
            records = list(curation.spool.records(batch))
            fits = model.fits([question_of(record) for record in records])
            readable = []
            for place, record, fit in zip(batch, records, fits, strict=True):
                if not model.speaks(record.language):
                    foreign[record.language] += 1
                elif not fit:
                    too_long += 1
                else:
                    readable.append((place, question_of(record)))
            places = [place for place, _ in readable]
            done = 0
            for vectors in cache.embed((question for _, question in readable), model):
                self.vectors[places[done : done + len(vectors)]] = vectors
                done += len(vectors)
            self.places.update(places)
        self._say_what_is_off(curation, foreign, too_long)

    def _say_what_is_off(self, curation: Curation, foreign: Counter[str], too_long: int) -> None:
        for language, number in foreign.most_common():
            knows = ", ".join(sorted(self._model.languages))
            curation.say(
                f"           (semantic duplicates are off for {number} records in {language!r}: the embedding model"
                f" knows {knows})"
            )
        if too_long:
            curation.say(f"           (and for {too_long} whose question is too long for the model)")

    def instruction_cosine(self, left: Record, right: Record) -> float:
        """How alike two instructions are without their inputs."""
        import numpy as np

        pair = np.concatenate(list(self._cache.embed([left.instruction, right.instruction], self._model)))
        first, second = pair.astype(np.float32)
        return min(float(first @ second), 1.0)


def _finite(score: float | None) -> float:
    return score if score is not None and math.isfinite(score) else -math.inf
