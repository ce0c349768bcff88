"""models.py: which model answers, and what is said of a key before anything is sent.

python -m pytest tests/test_models.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.extras import need
from pipeline.models import open_model
from pipeline.settings import GeneratorSettings
from tests.conftest import StartServer, against


@pytest.mark.parametrize("key", ["sk-\x00x", "密钥", "sk-a\nsk-b"])
def test_a_key_that_no_header_holds_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY holds characters that no key has") as refused:
        open_model(GeneratorSettings(model="m"), {"OPENAI_API_KEY": key})
    assert key not in str(refused.value)


def test_a_line_feed_behind_a_key_is_not_sent(
    tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.self_instruct import main

    server = start_server(key="sk-right")
    monkeypatch.setenv("OPENAI_API_KEY", " sk-right\r\n")
    assert main(list(map(str, against(server, tmp_path / "out", "--target", 1)))) == 0


def test_a_missing_extra_is_named_with_its_command() -> None:
    need("docs", "Nothing", "json")
    with pytest.raises(UsageError, match=r"A schedule takes no_such_module: pip install .* -e '\.\[schedule\]'"):
        need("schedule", "A schedule", "json", "no_such_module")


@pytest.mark.parametrize("flags", [("--judge-model", "j"), ("--judge-base-url", "http://127.0.0.1:9/v1")])
def test_a_judge_that_nobody_asks_is_no_setting(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import curate, self_instruct

    assert self_instruct.main(["--out", str(tmp_path / "a"), *flags]) == 2
    assert "nothing is judged without --judge or --pairs" in capsys.readouterr().err
    assert curate.main([str(tmp_path), "--out", str(tmp_path / "b"), *flags]) == 2
    assert "nothing is judged without --judge." in capsys.readouterr().err
