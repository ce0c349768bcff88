"""Settings: one pydantic model a command, from which come its flags, its --help, its TOML keys and its config.json.

Every setting is of one kind, and its kind says what changing it on an existing run folder means:

    shaping    it enters a request: exit 2, unless --accept-changes
    deriving   it acts after the last request: free
    running    it changes nothing about the data: free
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationInfo,
)

from pipeline import filters, own_filters
from pipeline.backends.endpoint import without_secrets
from pipeline.errors import UsageError
from pipeline.judge import VERDICT_TOKENS
from pipeline.llm import Manner
from pipeline.money import Limits
from pipeline.own_filters import OwnFilters
from pipeline.validated import validated

Kind = Literal["shaping", "deriving", "running"]


def setting(default: Any, kind: Kind, help: str, *, metavar: str = "", positional: bool = False, **bounds: Any) -> Any:
    """A field of a settings model; `help` is its line in --help, `bounds` are pydantic's (gt, ge, le …).

    A positional one takes what stands on the command line without a flag, any number of it; in TOML it is a list.
    """
    extra: Any = {"kind": kind, "metavar": metavar, "positional": positional}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


# ---------------------------------------------------------------- values with a form of their own


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error


# What the line itself puts into a request: replacing it would make another request than the journal says.
OUR_PARAMETERS = ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "response_format")


def _not_ours(value: dict[str, Any]) -> dict[str, Any]:
    for name in OUR_PARAMETERS:
        if name in value:
            raise ValueError(f"{name!r} is set by the command itself")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _filter_settings(value: object) -> object:
    """ "keywords=off,novelty=0.6" as {"keywords": False, "novelty": 0.6}."""
    if not isinstance(value, str):
        return value
    result: dict[str, float | str | bool] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, equals, wanted = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not NAME=on, NAME=off or NAME=SETTING")
        try:
            result[name] = wanted == "on" if wanted in ("on", "off") else float(wanted)
        except ValueError:
            result[name] = wanted
    return result


def _known_filters(value: dict[str, float | str | bool], info: ValidationInfo) -> dict[str, float | str | bool]:
    own: OwnFilters | None = info.data.get("own_filters")
    known = filters.ALL | {filter_.name: filter_ for filter_ in (own.filters if own is not None else ())}
    for name, wanted in value.items():
        if name not in known:
            raise ValueError(f"there is no filter {name!r}; {nearest(name, known)}")
        filter_ = known[name]
        if isinstance(wanted, bool) or wanted in filter_.choices:
            continue
        takes_number = filter_.threshold is not None and not filter_.choices
        if isinstance(wanted, str) or not takes_number or wanted not in filter_.range:
            ways = ["on", "off", *filter_.choices, *([str(filter_.range)] if takes_number else [])]
            raise ValueError(f"the filter {name!r} takes {', '.join(ways[:-1])} or {ways[-1]}")
    return value


FilterSettings = Annotated[
    dict[str, bool | float | str], BeforeValidator(_filter_settings), AfterValidator(_known_filters)
]  # fmt: skip


def _own_filters(value: object) -> object:
    return own_filters.load(Path(value)) if isinstance(value, str | Path) else value


OwnFilterSetting = Annotated[
    InstanceOf[OwnFilters] | None,
    BeforeValidator(_own_filters),
    PlainSerializer(lambda own: own.as_json() if own is not None else None),
]
JsonSetting = Annotated[dict[str, Any], BeforeValidator(_json_object), AfterValidator(_not_ours)]


# ---------------------------------------------------------------- what all generators share


class AskingSettings(BaseModel):
    """The flags of every command that may ask a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    extra_body: JsonSetting = setting(
        {}, "shaping", "put into every request, say to switch thinking off", metavar="JSON"
    )
    prompts: Path | None = setting(
        None, "running", "your own templates, by name; they replace the shipped ones", metavar="DIR"
    )
    judge: bool = setting(False, "running", "have a model score each record that the filters keep")
    judge_model: str | None = setting(None, "running", "the judge, named as --model is (none: the same model)")
    judge_base_url: str | None = setting(None, "running", "the judge's endpoint (none: --base-url)", metavar="URL")
    judge_api_key_env: str = setting("OPENAI_API_KEY", "running", "the variable that holds its key", metavar="NAME")
    judge_max_tokens: int = setting(VERDICT_TOKENS, "running", "of a verdict; a judge that thinks needs more", gt=15)
    concurrency: int = setting(32, "running", "requests in flight at most; another judge has as many", gt=0, le=1000)
    deadline: float = setting(300.0, "running", "for one call, in seconds", gt=0)
    max_requests: int | None = setting(None, "running", "sent at most, counting all this folder ever sent", gt=0)
    max_total_tokens: int | None = setting(None, "running", "read and written at most, counted likewise", gt=0)
    max_cost: float | None = setting(
        None, "running", "spent at most, counted likewise, what is in flight at its worst", metavar="USD", gt=0
    )
    prices: Path = setting(Path("prices.toml"), "running", "what models cost", metavar="FILE")
    rpm: float | None = setting(None, "running", "requests a minute at most, where the limit is known", gt=0)
    tpm: float | None = setting(None, "running", "tokens a minute at most, where the limit is known", gt=0)

    @property
    def limits(self) -> Limits:
        """What may be spent in all."""
        return Limits(self.max_cost, self.max_total_tokens, self.max_requests)


class GeneratorSettings(AskingSettings):
    """The flags of every generator; a command adds its own in a subclass."""

    out: Path = setting(Path(), "running", "the run folder", metavar="DIR")
    model: str | None = setting(None, "running", "a folder (local), a name (endpoint); none: the bundled model")
    base_url: str | None = setting(
        None, "running", "the endpoint; OPENAI_BASE_URL counts when a model is named", metavar="URL"
    )
    api_key_env: str = setting("OPENAI_API_KEY", "running", "the variable that holds the key", metavar="NAME")
    temperature: float | None = setting(None, "shaping", "of what is written (none: each stage's own)", ge=0, le=2)
    top_p: float | None = setting(None, "shaping", "nucleus sampling (none: each stage's own)", gt=0, le=1)
    language: Literal["auto", "en", "zh"] = setting("auto", "shaping", "of prompts and records (auto: the source's)")
    seed: int = setting(0, "shaping", "of every random choice")
    target: int | None = setting(None, "running", "kept records to end with", gt=0)
    max_tokens: int | None = setting(None, "shaping", "of a reply (none: 1024; the bundled model 320)", gt=15)
    own_filters: OwnFilterSetting = setting(
        None, "deriving", "your own filters, the functions of a Python file", metavar="FILE.py"
    )
    filters: FilterSettings = setting(
        {}, "deriving", "filters off, or thresholds: keywords=off,too_short=2", metavar="NAME=…"
    )
    pairs: int | None = setting(
        None, "running", "write preferences.jsonl, N further answers to each question (0: what comes for free)",
        metavar="N", ge=0, le=32,
    )  # fmt: skip

    def manner(self, max_tokens: int, bundled: int) -> Manner:
        """How requests are asked; the numbers are a reply's tokens where the user set none, and the bundled model's."""
        most = self.max_tokens or (bundled if self.model is None else max_tokens)
        return Manner(most, self.temperature, self.top_p, self.extra_body)

    @property
    def needs_model(self) -> bool:
        """Whether anything is asked at all; a command that can do without says so."""
        return True


Settings = TypeVar("Settings", bound=GeneratorSettings)
Checked = TypeVar("Checked", bound=BaseModel)


def parse(
    model: type[Settings], argv: Sequence[str] | None, *, command: str, about: str
) -> tuple[Settings, argparse.Namespace]:
    """Settings from --config FILE.toml and the flags, which win; and the switches that are no settings.

    Raises UsageError for an unknown key (naming the nearest), a wrong value, or a file that cannot be read.
    argparse itself exits 2 for a flag it does not know.
    """
    parser = flags_of(model, command=command, about=about)
    switches = add_switches(parser)
    switches.add_argument(
        "--accept-changes", action="store_true", help="go on in a folder made with other shaping settings"
    )
    arguments = parser.parse_args(argv)
    return checked(model, arguments), arguments


def add_switches(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is no setting, for a command that may ask a model."""
    switches = parser.add_argument_group("switches")
    switches.add_argument("--offline", action="store_true", help="send nothing: derive the records from what is stored")
    switches.add_argument("--retry-failed", action="store_true", help="ask again what failed for good")
    switches.add_argument("--plan", action="store_true", help="send nothing: say what would be sent, and its price")
    switches.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    return switches


def flags_of(model: type[BaseModel], *, command: str, about: str) -> argparse.ArgumentParser:
    """A parser with a flag for each setting of the model, and --config; only what is given appears in its result."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own_first = sorted(model.model_fields.items(), key=lambda named: named[0] in AskingSettings.model_fields)
    for name, field in own_first:
        extra: Any = field.json_schema_extra
        shown = field.default not in (None, {}, (), Path()) and field.annotation is not bool
        default = f" [{field.default}]" if shown else ""
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{field.description}{default}".replace("%", "%%"),
        }
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = extra["metavar"] or _metavar(field.annotation)
        if get_origin(field.annotation) is tuple:
            options["nargs"] = "+"
        if extra["positional"]:
            parser.add_argument(name, **options | {"nargs": "*"})
        else:
            parser.add_argument(_flag(name), **options)
    version = importlib.metadata.version("instructloop")
    parser.add_argument("--version", action="version", version=f"instructloop {version}")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file with the same keys; flags win")
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def checked(model: type[Checked], arguments: argparse.Namespace) -> Checked:
    """The settings, from --config and the flags, which win. Raises UsageError for what is unknown or wrong."""
    flags = {name: value for name, value in vars(arguments).items() if name in model.model_fields}
    values = read_toml(arguments.config, model) | flags
    return validated(
        model, values, lambda name: _flag(name) if name.split(",")[0] in flags else f"{arguments.config}, {name}"
    )


def toml_of(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises UsageError where it cannot be read, or is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error}).") from error


def read_toml(path: Path | None, model: type[BaseModel]) -> dict[str, Any]:
    """The keys of a config file, hyphens made underscores."""
    if path is None:
        return {}
    values = {name.replace("-", "_"): value for name, value in toml_of(path).items()}
    for name in values:
        if name not in model.model_fields:
            raise UsageError(f"{path}: there is no setting {name!r}; {nearest(name, model.model_fields)}")
    return values


def shaping(settings: GeneratorSettings) -> dict[str, Any]:
    """The settings that enter a request, JSON-ready."""
    names = [n for n, f in type(settings).model_fields.items() if f.json_schema_extra["kind"] == "shaping"]  # type: ignore[index]
    dumped = settings.model_dump(mode="json")
    return {name: dumped[name] for name in names}


def resolved(settings: BaseModel) -> dict[str, Any]:
    """All settings, JSON-ready, for config.json. It holds no key: only the name of the variable that holds it."""
    dumped = settings.model_dump(mode="json")
    for name in ("base_url", "judge_base_url"):
        if dumped.get(name):
            dumped[name] = without_secrets(dumped[name])
    return dumped


def nearest(name: str, names: Collection[str]) -> str:
    """A half sentence that names the nearest of `names`."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"the nearest is {found[0]!r}"


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    names = {int: "N", float: "X", str: "NAME", Path: "PATH"}
    return next((names[part] for part in (annotation, *get_args(annotation)) if part in names), "VALUE")
