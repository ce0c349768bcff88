"""The project file: which sources are asked how, how the set is chosen, what a new version must be like.

    name = "handbook"                 its folder is outputs/handbook, unless `out` says otherwise
    [shared]                          settings of all sources, as the generators' flags name them
    [[source]]                        name, generator, and that generator's own settings
    [curate] [gate] [budget] [train] [schedule]  each may be missing

Paths are relative to the file, so that it does not matter where a scheduler starts the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.curate import CurateSettings
from pipeline.errors import UsageError
from pipeline.money import DEFAULT_PRICES
from pipeline.scheduling.timing import Schedule
from pipeline.self_instruct import SelfInstruct, SelfInstructSettings
from pipeline.self_kg import SelfKG, SelfKGSettings
from pipeline.self_qa import SelfQA, SelfQASettings
from pipeline.settings import GeneratorSettings, first_mistake, nearest, toml_of

Made = TypeVar("Made", bound=BaseModel)
Maker = type[SelfInstruct] | type[SelfQA] | type[SelfKG]

GENERATORS: dict[str, tuple[Maker, type[GeneratorSettings]]] = {
    "self_instruct": (SelfInstruct, SelfInstructSettings),
    "self_qa": (SelfQA, SelfQASettings),
    "self_kg": (SelfKG, SelfKGSettings),
}
# A project has one folder and one [budget]; pairs and a judge at curation are of the commands that make them.
NOT_OURS = {"out", "max_cost", "max_total_tokens", "max_requests", "pairs"}
NOT_OF_CURATE = {"inputs"} | {
    name
    for name, field in CurateSettings.model_fields.items()
    if field.json_schema_extra["kind"] == "running"  # type: ignore[index]
}


class Table(BaseModel):
    """A table of the file; an unknown key is an error that names the nearest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Gate(Table):
    """What a new version must be like to become the latest; what is not named is not asked for."""

    least_records: int = Field(1, ge=0, description="records at least")
    largest_drop: float | None = Field(None, ge=0, le=1, description="share of the last version's records to lose")
    kept_ratio: float | None = Field(None, ge=0, le=1, description="kept of all candidates, at least")
    judge_score: float | None = Field(None, description="mean of the records' judge score, at least")
    verdict: Literal["better", "not worse"] | None = Field(None, description="of [train]")


class BudgetTable(Table):
    """What may be spent, what is in flight counted at its worst; a month is a calendar month in UTC."""

    max_cost_per_tick: float | None = Field(None, gt=0, description="USD")
    max_cost_per_month: float | None = Field(None, gt=0, description="USD")
    max_total_tokens_per_tick: int | None = Field(None, gt=0)
    max_total_tokens_per_month: int | None = Field(None, gt=0)
    max_requests_per_tick: int | None = Field(None, gt=0)
    max_requests_per_month: int | None = Field(None, gt=0)


class ProjectTable(Table):
    """The file's own keys."""

    name: str = Field("project", pattern=r"^[\w.-]+$", description="of the folder under outputs/")
    out: Path | None = Field(None, description="the project's folder, if not outputs/NAME")
    keep_versions: int | None = Field(None, gt=0, description="as --gc N, after each new version")
    accept_changes: bool = Field(False, description="ask anew what a changed prompt, model or setting shapes")
    keep: bool = Field(False, description="copy the records of what did not change, instead")
    shared: dict[str, Any] = {}
    source: list[dict[str, Any]] = []
    curate: dict[str, Any] = {}
    gate: dict[str, Any] = {}
    budget: dict[str, Any] = {}
    train: dict[str, str | int | float | bool] | None = None
    schedule: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Source:
    """One [[source]]: what makes its records, and from what."""

    name: str
    generator: str
    settings: Any  # of one of GENERATORS
    follows: bool  # its model is the shared one, so that a better adapter takes its place


@dataclass(frozen=True, slots=True)
class Project:
    """The file, checked."""

    path: Path
    out: Path
    sources: tuple[Source, ...]
    curate: CurateSettings
    gate: Gate
    budget: BudgetTable
    train: dict[str, str | int | float | bool] | None
    keep_versions: int | None
    accept_changes: bool
    keep: bool
    schedule: Schedule | None  # of pipeline.schedule


def read_project(path: Path) -> Project:
    """The project of a file. Raises UsageError with the file, the table, the key and what is wrong."""
    base = path.resolve().parent
    table = _checked(ProjectTable, toml_of(path), f"{path}")
    if not table.source:
        raise UsageError(f"{path}: names no [[source]].")
    curate = _checked(CurateSettings, table.curate, f"{path}, [curate]", without=NOT_OF_CURATE)
    gate = _checked(Gate, table.gate, f"{path}, [gate]")
    if gate.verdict is not None and table.train is None:
        raise UsageError(f"{path}, [gate] verdict: there is no [train] to give one.")
    return Project(
        path=path,
        out=base / (table.out or Path("outputs") / table.name),
        sources=_sources(table, path, base),
        curate=_placed(curate, base),
        gate=gate,
        budget=_checked(BudgetTable, table.budget, f"{path}, [budget]"),
        train=table.train and {name: _there(value, base) for name, value in table.train.items()},
        keep_versions=table.keep_versions,
        accept_changes=table.accept_changes,
        keep=table.keep,
        schedule=_checked(Schedule, table.schedule, f"{path}, [schedule]") if table.schedule else None,
    )


def _sources(table: ProjectTable, path: Path, base: Path) -> tuple[Source, ...]:
    shared_keys = GeneratorSettings.model_fields
    for key in table.shared:
        if key.replace("-", "_") not in shared_keys or key in NOT_OURS:
            raise UsageError(f"{path}, [shared]: there is no setting {key!r}; {nearest(key, shared_keys)}")
    sources: dict[str, Source] = {}
    for number, own in enumerate(table.source, 1):
        values = {key.replace("-", "_"): value for key, value in own.items()}
        generator = values.pop("generator", None)
        if generator not in GENERATORS:
            raise UsageError(
                f"{path}, [[source]] {number}: `generator` is one of {', '.join(GENERATORS)} (given: {generator!r})."
            )
        name = values.pop("name", generator)
        where = f"{path}, [[source]] {name}"
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise UsageError(f"{where}: a name has letters, digits, '.', '_' and '-'.")
        if name in sources:
            raise UsageError(f"{where}: the name stands there twice; give each source one of its own.")
        shared = {key.replace("-", "_"): value for key, value in table.shared.items()}
        settings = _checked(GENERATORS[generator][1], {**shared, **values}, where, without=NOT_OURS)
        follows = not values.keys() & {"model", "base_url"}
        sources[name] = Source(name, generator, _placed(settings, base), follows)
    return tuple(sources.values())


def _checked(model: type[Made], keys: Mapping[str, Any], where: str, without: set[str] = frozenset()) -> Made:  # type: ignore[assignment]
    known = {name: field for name, field in model.model_fields.items() if name not in without}
    values = {name.replace("-", "_"): value for name, value in keys.items()}
    for name in values:
        if name not in known:
            raise UsageError(f"{where}: there is no setting {name!r}; {nearest(name, known)}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        name, said = first_mistake(error)
        raise UsageError(f"{where}, {name}: {said}") from error


def _there(value: str | int | float | bool, base: Path) -> str | int | float | bool:
    """A value of [train]; one that names something beside the file is a path."""
    return str(base / value) if isinstance(value, str) and (base / value).exists() else value


def _placed(settings: Made, base: Path) -> Made:
    """The settings with their paths below the file's folder."""
    placed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path) and value != Path() and not (name == "prices" and value == DEFAULT_PRICES):
            placed[name] = base / value
        elif isinstance(value, tuple) and any(isinstance(part, Path) for part in value):
            placed[name] = tuple(base / part for part in value)
        elif name == "model" and isinstance(value, str) and (base / value).is_dir():
            placed[name] = str(base / value)
    if "prices" in type(settings).model_fields and "prices" not in placed and (base / DEFAULT_PRICES).is_file():
        placed["prices"] = base / DEFAULT_PRICES
    return settings.model_copy(update=placed)
