"""The two READMEs, in English and in Chinese, say the same: section by section the same commands, files and flags.

What may differ: the words around them, the notes behind a command, and what makes a command a Chinese one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline import self_kg
from tests.conftest import read_lines
from tests.fake_server import ROOT

ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh.md"))
READMES = pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=lambda path: path.name)
_CHINESE_ALONE = re.compile(r" (?:--seeds seeds/175(?:_zh)?\.jsonl|--language zh)\b")
_RECORD = re.compile(r"```json\n(.*?)```", re.DOTALL)


def sections(readme: Path) -> list[str]:
    """What stands before the first heading, and under each one."""
    return re.split(r"^## .*$", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)


def commands(section: str) -> list[str]:
    """What its blocks say to run, and the first word of what else they hold: without notes, and in no language."""
    found = []
    for line in re.findall(r"^    (.*)$", section, re.MULTILINE):
        server = re.fullmatch(r"# \w+: +(.*)", line.strip())  # "# vLLM:   vllm serve …"
        command = server[1] if server else re.split(r"\s*#\s", line.strip())[0]
        is_run = command.startswith(("make ", "python ", "pip ", "source ", "export ")) or server
        found.append(_CHINESE_ALONE.sub("", command) if is_run else command.partition(" ")[0])
    return [command for command in found if command]


def in_code(section: str) -> list[str]:
    """Flags, files and commands named in the running text, each once."""
    running = re.sub(r"^    .*$|```.*?```", "", section, flags=re.MULTILINE | re.DOTALL)
    return sorted({_CHINESE_ALONE.sub("", f" {code}").strip() for code in re.findall(r"`([^`]+)`", running)} - {""})


def test_both_have_the_same_sections() -> None:
    assert len(sections(CHINESE)) == len(sections(ENGLISH)) > 5


@pytest.mark.parametrize("number", range(1, len(sections(ENGLISH)) - 1))
def test_each_section_holds_the_same_commands_in_the_same_order(number: int) -> None:
    english, chinese = sections(ENGLISH)[number], sections(CHINESE)[number]
    assert commands(chinese) == commands(english)
    assert in_code(chinese) == in_code(english)


def test_some_section_holds_commands() -> None:
    assert sum(len(commands(section)) for section in sections(ENGLISH)[1:-1]) > 20


def test_each_links_to_the_other_in_its_first_lines() -> None:
    assert "(README.zh.md)" in "".join(ENGLISH.read_text(encoding="utf-8").splitlines()[:4])
    assert "(README.md)" in "".join(CHINESE.read_text(encoding="utf-8").splitlines()[:4])


@READMES
def test_what_it_links_to_and_names_is_there(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)]
    named = re.findall(r"(?<![\w./])(?:seeds|kg|prompts)/[\w./]+", text)
    for path in [path for path, _, _ in links] + [path.rstrip(".") for path in named]:
        assert (ROOT / path).exists(), path
    headings = {h.lower() for h in re.findall(r"^## (.*)$", ENGLISH.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {anchor for _, _, anchor in links} <= headings | {""}


@READMES
def test_the_record_it_shows_is_one_that_its_command_makes(readme: Path, tmp_path: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    command = re.search(r"`python -m pipeline\.self_kg (kg/planets\.ttl [^`]+)`", text)
    shown = _RECORD.search(text)
    assert command is not None
    assert shown is not None
    graph, *flags = command[1].split()
    assert self_kg.main([str(ROOT / graph), *flags, "--out", str(tmp_path)]) == 0
    assert any(json.loads(shown[1]).items() <= record.items() for record in read_lines(tmp_path / "records.jsonl"))
