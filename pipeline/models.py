"""Which model answers: none named, the bundled one; a folder, that local model; a name, the endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pipeline.backends.endpoint import Endpoint, without_secrets
from pipeline.backends.local_model import LocalModel
from pipeline.errors import EndpointError, UsageError
from pipeline.llm import Model, Reply, Request
from pipeline.settings import AskingSettings, GeneratorSettings

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "host.docker.internal"}


def open_model(settings: GeneratorSettings, environment: Mapping[str, str] = os.environ) -> Model:
    """The model the settings name. Nothing is loaded or sent yet.

    Without `--model` it is the bundled one, whatever the environment holds, so that trying things out never spends.
    """
    if not settings.needs_model:
        return NoModel()
    if settings.model is None and settings.base_url is not None:
        raise UsageError("--base-url needs --model NAME: which of the endpoint's models shall answer?")
    return _open(Named(settings.model, settings.base_url, settings.api_key_env), settings, environment)


def open_judge(settings: GeneratorSettings, generator: Model) -> Model:
    """The model that judges: the one named for it, else the generator's own."""
    if settings.judge_model is None:
        return generator
    base_url = settings.judge_base_url or settings.base_url
    return _open(Named(settings.judge_model, base_url, settings.judge_api_key_env), settings, os.environ)


def check_judge_is_asked(settings: AskingSettings, flags: str, *, asked: bool) -> None:
    """A judge that is named and never asked would be a setting that does nothing.

    :raises UsageError: then; `flags` are those that have it asked.
    """
    if not asked and (settings.judge_model is not None or settings.judge_base_url is not None):
        raise UsageError(f"--judge-model: nothing is judged without {flags}.")


def open_judge_alone(settings: AskingSettings) -> Model:
    """The model that judges where nothing else is asked: the one named for it, else the bundled one."""
    if settings.judge_model is None and settings.judge_base_url is not None:
        raise UsageError("--judge-base-url needs --judge-model NAME: which of the endpoint's models shall judge?")
    named = Named(settings.judge_model, settings.judge_base_url, settings.judge_api_key_env, "--judge-api-key-env")
    return _open(named, settings, os.environ)


class Named(NamedTuple):
    """A model as the user named it."""

    name: str | None
    base_url: str | None
    api_key_env: str
    flag: str = "--api-key-env"


def _open(named: Named, settings: AskingSettings, environment: Mapping[str, str]) -> Model:
    if named.name is None:
        return LocalModel.bundled(batch=settings.concurrency)
    if named.base_url is None and (_looks_like_a_path(named.name) or Path(named.name).is_dir()):
        return LocalModel.from_directory(Path(named.name), batch=settings.concurrency)
    base_url = named.base_url or environment.get("OPENAI_BASE_URL") or None
    host = "api.openai.com" if base_url is None else _host(base_url)
    key = environment.get(named.api_key_env, "").strip()  # files that hold a key end in a line feed
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"{named.api_key_env} holds characters that no key has; set it again.")
    if not key:
        if host not in LOCAL_HOSTS:
            raise UsageError(
                f"The model {named.name!r} is asked at {host},"
                f" which needs a key: set {named.api_key_env}, or name another variable by {named.flag}."
            )
        key = "none"  # local servers take any
    return Endpoint(named.name, base_url=base_url, api_key=key, deadline_s=settings.deadline)


def _host(base_url: str) -> str:
    """The host of an endpoint's address; raises UsageError where it is none."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port  # a port that is none shows only when it is looked at
    except ValueError as error:
        raise UsageError(f"--base-url: not an address ({error}).") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"--base-url {without_secrets(base_url)!r}: not an http:// or https:// address.")
    return host


class NoModel:
    """Stands where nothing is asked: records from templates name "template" as their model."""

    reader, is_local, address, identity = "local", True, "none", "template"

    def refuse(self, parameters: set[str]) -> None:
        pass

    async def complete(self, request: Request) -> Reply:
        raise EndpointError("A model was asked where none is wanted.")

    async def close(self) -> None:
        pass


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith((os.sep, ".gguf"))
