"""From what the sources gave to a version: curated, trained on, past the gate, renamed; then LATEST moves, or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.curate import make_set
from pipeline.regeneration.gate import Measured, objections
from pipeline.regeneration.kept import read_rejections
from pipeline.regeneration.project import NOT_OF_CURATE, Project
from pipeline.regeneration.training import train
from pipeline.regeneration.versions import Version, Versions, content_of
from pipeline.run_folder import read_records, write_json


@dataclass(frozen=True, slots=True)
class Assembled:
    """What became of a tick."""

    version: Version  # the one made; where nothing changed, the one there was
    is_new: bool
    reasons: tuple[str, ...]  # of the gate, why it is not the latest


def assemble(
    project: Project,
    versions: Versions,
    sources: dict[str, dict[str, Any]],
    tick: dict[str, Any],
    say: Callable[[str], None],
    *,
    lock: int,
    retracted: str | None = None,
) -> Assembled:
    """Make a version out of the sources' folders under `versions.aside`.

    :param sources: for each its generator, settings, shaping, files and counts, for the manifest.
    :param tick: what else the manifest is to say: cost, the latest attempt.
    :param lock: the descriptor of the project's lock.
    :param retracted: the source that was revoked: such a version passes any gate, and is not trained on.
    """
    parent, aside = versions.latest(), versions.aside
    summary = _curate(project, aside, list(sources), say)
    content = content_of(aside, sources)
    if parent is not None and parent.manifest["content"] == content:
        versions.drop()
        return Assembled(parent, False, ())
    trained = None
    if project.train is not None and retracted is None and summary["kept"]:
        trained = train(project.train, aside, project.out / "adapters", say, lock=lock)
    found = _measure(aside, sources, summary, parent, trained)
    reasons = tuple(objections(project.gate, found)) if retracted is None else ()
    newest = versions.newest()
    if newest is not None and newest.manifest["content"] == content and newest.passed == (not reasons):
        versions.drop()  # killed before LATEST moved, or refused before for the same reason
        if not reasons:
            versions.make_latest(newest)
        return Assembled(newest, False, reasons)
    manifest = {
        "parent": parent.name if parent else None,
        "content": content,
        "retracts": retracted is not None,
        "gate": {"rules": project.gate.model_dump(), "reasons": list(reasons)},
        "counts": {"records": summary["kept"], "candidates": found.candidates, "rejected": summary["rejected"]},
        "curate": project.curate.model_dump(mode="json", exclude=NOT_OF_CURATE),
        "sources": sources,
        "training": trained,
        "adapter": _next_adapter(parent, trained) if retracted is None else None,
        **tick,
    }
    version = versions.publish(manifest)
    if not reasons:
        versions.make_latest(version)
    return Assembled(version, True, reasons)


def _curate(project: Project, aside: Path, names: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """The set, out of what the sources kept. Its config.json names them as a reader of the version finds them."""
    inputs = tuple(aside / "sources" / name for name in names)
    summary = make_set(project.curate.model_copy(update={"inputs": inputs, "out": aside}), say, project.out)
    config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
    found = [f"sources/{name}" for name in names]
    config["parents"] = [{**parent, "path": path} for parent, path in zip(config["parents"], found, strict=True)]
    config["settings"] |= {"inputs": found, "out": "."}
    write_json(aside / "config.json", config)
    return summary


def _measure(
    aside: Path,
    sources: dict[str, dict[str, Any]],
    summary: dict[str, Any],
    parent: Version | None,
    trained: dict[str, Any] | None,
) -> Measured:
    scores = [record.scores["judge"] for record in read_records(aside) if "judge" in record.scores]
    turned_away = sum(
        rejection.stage != "file" for name in sources for rejection in read_rejections(aside / "sources" / name)
    )
    return Measured(
        records=summary["kept"],
        before=parent.manifest["counts"]["records"] if parent else None,
        candidates=summary["read"] + turned_away,
        judge_score=sum(scores) / len(scores) if scores else None,
        verdict=trained["verdict"] if trained else None,
    )


def _next_adapter(parent: Version | None, trained: dict[str, Any] | None) -> str | None:
    """The folder under adapters/ that answers from now on: a better one, else the one that did so far."""
    if trained is not None and trained["verdict"] == "better":
        return str(trained["adapter"])
    return parent.manifest["adapter"] if parent else None
