"""What goes with a tuned model: an Ollama Modelfile that says what the model's own template says, or says nothing.

python -m pytest tests/test_finetune_card.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune import card
from finetune.data import Message
from tests.tiny_models import SILENT_TEMPLATE, TEMPLATE, letters

pytest.importorskip("transformers", reason="the trainer needs the extra: pip install -e .[local,train]")
from finetune.rows import PLAIN_TEMPLATE

DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
STARTED = "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content + eos_token }}{% endfor %}[a]"
TALKS: list[list[Message]] = [
    [("user", "Hello {{ .Role }}?")],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")],
    [("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "I."), ("user", "Bye")],
]


def as_ollama(modelfile: str, messages: Sequence[Message]) -> str:
    """A Modelfile's prompt, by the few words of Go's template language that are used in it."""
    found = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)
    assert found
    body, asks = re.fullmatch(r"\{\{ range \.Messages \}\}(.*\}\})\{\{ end \}\}(.*)", found[1], re.DOTALL).groups()  # type: ignore[union-attr]
    system = re.search(r'SYSTEM """(.*?)"""', modelfile, re.DOTALL)
    if system and messages[0][0] != "system":
        messages = [("system", system[1]), *messages]
    blocks = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', body, re.DOTALL))
    return "".join(text.join(blocks[role].split("{{ .Content }}")) for role, text in messages) + asks


@pytest.mark.parametrize("template", [TEMPLATE, SILENT_TEMPLATE, PLAIN_TEMPLATE, DEFAULT + TEMPLATE, STARTED])
def test_a_modelfile_asks_as_the_models_own_template_does(template: str, tmp_path: Path) -> None:
    tokenizer = letters(template)
    if "bos_token" in template:
        tokenizer.bos_token = "<s>"
    assert card.write_modelfile(tmp_path, tokenizer, ["<|im_end|>"])
    modelfile = (tmp_path / "Modelfile").read_text()
    assert modelfile.startswith("FROM .\n")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    for talk in TALKS:
        turns = [{"role": role, "content": text} for role, text in talk]
        wanted = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert as_ollama(modelfile, talk) == wanted.removeprefix("<s>")  # which Ollama writes itself


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.replace("m['content']", "(m['content'] if loop.last else '…')"),  # forgets earlier turns
        "{{ raise_exception('no system messages') if messages[0].role == 'system' }}" + TEMPLATE,
    ],
)
def test_a_template_that_cannot_be_said_is_left_out(template: str, tmp_path: Path) -> None:
    assert not card.write_modelfile(tmp_path, letters(template), ["<|im_end|>"])
    assert (tmp_path / "Modelfile").read_text() == 'FROM .\nPARAMETER stop "<|im_end|>"\n'
