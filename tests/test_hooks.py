"""Hooks: commands and webhooks that are told, and what is said of those that fail, hang, or are not there."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.scheduling.hooks import tell

BODY = {"text": "Größe: 3 'a' $HOME `b`", "result": {"records": 3}}


class Webhook(ThreadingHTTPServer):
    """Answers with `status`, or not at all; keeps what it was sent."""

    daemon_threads = True

    def __init__(self, status: int | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.got = status, list[tuple[str, str, Any]]()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://user:pass@127.0.0.1:{self.server_address[1]}/services/SECRET?token=SECRET"


class Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        if self.server.status is None:
            self.server.over.wait(30)
            return
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook(request: pytest.FixtureRequest) -> Iterator[Webhook]:
    with Webhook(request.param) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def test_a_command_gets_the_body_as_json_in_the_project_s_folder(tmp_path: Path) -> None:
    assert tell(("sh", "-c", "cat > told.json; pwd > where"), BODY, tmp_path) == ""
    assert json.loads((tmp_path / "told.json").read_text()) == BODY
    assert (tmp_path / "where").read_text().strip() == str(tmp_path)


def test_a_line_is_words_and_no_shell(tmp_path: Path) -> None:
    assert tell("touch 'a b' $HOME;rm", BODY, tmp_path) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["$HOME;rm", "a b"]


def test_a_command_need_not_read(tmp_path: Path) -> None:
    assert tell("true", {"text": "x" * 10**6}, tmp_path) == ""


@pytest.mark.parametrize("webhook", [200, 204], indirect=True)
def test_a_webhook_is_posted_the_body(webhook: Webhook, tmp_path: Path) -> None:
    assert tell(webhook.url, BODY, tmp_path) == ""
    assert webhook.got == [("/services/SECRET?token=SECRET", "application/json", BODY)]


@pytest.mark.parametrize("webhook", [302, 404, 500], indirect=True)
def test_what_a_webhook_answers_is_said_without_its_secrets(webhook: Webhook, tmp_path: Path) -> None:
    said = tell(webhook.url, BODY, tmp_path)
    assert said == f"127.0.0.1: answered {webhook.status}."
    assert len(webhook.got) == 1


@pytest.mark.parametrize("webhook", [200], indirect=True)
def test_an_address_may_stand_in_a_variable(webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HOOK", webhook.url)
    assert tell("$MY_HOOK", BODY, tmp_path) == ""
    assert len(webhook.got) == 1
    assert tell("$NO_HOOK", BODY, tmp_path) == "$NO_HOOK: holds no address."


@pytest.mark.parametrize("webhook", [None], indirect=True)
def test_a_webhook_that_hangs_is_left(webhook: Webhook, tmp_path: Path) -> None:
    assert tell(webhook.url, BODY, tmp_path, longest_s=0.2) == "127.0.0.1: ReadTimeout."


def test_a_command_that_hangs_is_stopped(tmp_path: Path) -> None:
    hangs = (sys.executable, "-c", "import signal; signal.pause()")
    assert tell(hangs, BODY, tmp_path, longest_s=0.2).endswith("took longer than 0 s, and was stopped.")


FAILING: dict[str, tuple[Any, str]] = {
    "a command that fails": (("sh", "-c", "exit 4"), "sh: exit code 4."),
    "a command that is not there": ("no-such-command", "no-such-command: cannot be run (No such file or directory)."),
    "nobody listens": ("http://127.0.0.1:9/x", "127.0.0.1: ConnectError."),
    "no address": ("https://", "(no address): UnsupportedProtocol."),
    "half an address": ("http://[::1/x", "(no address): InvalidURL."),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_cannot_be_told_is_said(case: str, tmp_path: Path) -> None:
    hook, said = FAILING[case]
    assert tell(hook, BODY, tmp_path) == said


def test_nobody_is_told_nothing(tmp_path: Path) -> None:
    assert tell(None, BODY, tmp_path) == ""
