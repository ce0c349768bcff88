"""The project file: which sources are asked how, how the set is chosen, what a new version must be like.

    name = "handbook"                 its folder is outputs/handbook, unless `out` says otherwise
    [shared]                          settings of all sources, as the generators' flags name them
    [[source]]                        name, generator, and that generator's own settings
    [curate] [gate] [budget] [train] [schedule]  each may be missing

Paths are relative to the file, so that it does not matter where a scheduler starts the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.curate import CurateSettings
from pipeline.errors import UsageError
from pipeline.money import DEFAULT_PRICES
from pipeline.scheduling.timing import Schedule
from pipeline.self_instruct import SelfInstruct, SelfInstructSettings
from pipeline.self_kg import SelfKG, SelfKGSettings
from pipeline.self_qa import SelfQA, SelfQASettings
from pipeline.settings import GeneratorSettings, nearest, toml_of
from pipeline.validated import shown, validated

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
ONE_SOURCE = "[source]: write [[source]], in two brackets; there may be several."
NAME = r"\w[\w.-]*"  # of a folder


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


def _plain_name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise ValueError("takes letters, digits, '_', and behind the first one '.' and '-'")
    return value


class ProjectTable(Table):
    """The file's own keys."""

    name: Annotated[str, AfterValidator(_plain_name)] = Field("project", description="of the folder under outputs/")
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


# The tables of the file, each with the keys that it may have; [train] has those of a command the pipeline knows not.
TABLES: dict[str, Set[str]] = {
    "shared": GeneratorSettings.model_fields.keys() - NOT_OURS,
    "source": set().union(*(settings.model_fields for _, settings in GENERATORS.values()), {"generator"}) - NOT_OURS,
    "curate": CurateSettings.model_fields.keys() - NOT_OF_CURATE,
    "gate": Gate.model_fields.keys(),
    "budget": BudgetTable.model_fields.keys(),
    "train": frozenset(),
    "schedule": Schedule.model_fields.keys(),
}


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

    @property
    def journal(self) -> Path:
        return self.out / "journal.sqlite"


def read_project(path: Path) -> Project:
    """The project of a file. Raises UsageError with the file, the table, the key and what is wrong."""
    base, content = path.resolve().parent, _content(path)
    _check_tables(content, path)
    table = _checked(ProjectTable, content, f"{path}")
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
    for key in (key.replace("-", "_") for key in table.shared):
        if key not in TABLES["shared"]:
            raise UsageError(f"{path}, [shared]: there is no setting {key!r}; {_hint(key, TABLES['shared'])}.")
    sources: dict[str, Source] = {}
    for number, own in enumerate(table.source, 1):
        values = {key.replace("-", "_"): value for key, value in own.items()}
        generator = values.pop("generator", None)
        if generator not in GENERATORS:
            given = (
                "missing" if generator is None else f"given: {shown(generator)}; {nearest(str(generator), GENERATORS)}"
            )
            raise UsageError(f"{path}, [[source]] {number}: `generator` is one of {', '.join(GENERATORS)} ({given}).")
        name = values.pop("name", generator)
        where = f"{path}, [[source]] {name}"
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise UsageError(f"{where}: a name has letters, digits, '.', '_' and '-' (given: {shown(name)}).")
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
            raise UsageError(f"{where}: there is no setting {name!r}; {_hint(name, known.keys())}.")
    return validated(model, values, lambda name: f"{where}, {name}" if name else where)


def _hint(name: str, known: Set[str]) -> str:
    """Where a name that is unknown in a table has its place, else the nearest of those that are known."""
    if f"{name}_per_tick" in BudgetTable.model_fields:
        return f"[budget] has {name}_per_tick and {name}_per_month"
    if name in ProjectTable.model_fields:
        return "it stands above the first table"
    table = next((table for table, keys in TABLES.items() if name in keys), None)
    if table == "source" and TABLES["shared"] < known:  # it stands in a source, of another generator
        return (
            f"it is one of {' and '.join(maker for maker, (_, own) in GENERATORS.items() if name in own.model_fields)}"
        )
    return nearest(name, known) if table is None else f"it belongs into {_bracketed(table)}"


def _bracketed(table: str) -> str:
    return "[[source]]" if table == "source" else f"[{table}]"


def _content(path: Path) -> dict[str, Any]:
    try:
        return toml_of(path)
    except UsageError:  # two tables of one name are no TOML: say what was meant by them
        if path.is_file() and re.search(rb"^\s*\[source[].]", path.read_bytes(), re.MULTILINE):
            raise UsageError(f"{path}, {ONE_SOURCE}") from None
        raise


def _check_tables(content: Mapping[str, Any], path: Path) -> None:
    """Each table is written as one: [[source]] in two brackets, for there may be several, the others in one."""
    for name, value in content.items():
        is_list = isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)
        is_table = isinstance(value, dict)
        if name not in TABLES and (is_list or is_table):
            near = nearest(_bracketed(name), [_bracketed(table) for table in TABLES])
            raise UsageError(f"{path}, [{name}]: there is no such table; {near}.")
        if name not in TABLES or (is_list if name == "source" else is_table):
            continue
        if is_table:
            raise UsageError(f"{path}, {ONE_SOURCE}")
        if is_list:
            raise UsageError(f"{path}, [[{name}]]: write [{name}], in single brackets; there is one.")
        raise UsageError(f"{path}, {name}: is a table, {_bracketed(name)} with its keys below (given: {shown(value)}).")


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
