"""What goes with a tuned model: a card that says what it was made of, an Ollama Modelfile, and commands for others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetune.data import Message, read_json
from finetune.verdict import table


def write_card(
    folder: Path, run: dict[str, Any], trained: dict[str, Any], verdict: dict[str, Any] | None, base: str
) -> None:
    """README.md: base, data by hash, recipe, verdict. No path of this machine is in it."""
    recipe = {name: value for name, value in run["recipe"].items() if value is not None}
    library = "peft" if (folder / "adapter_config.json").is_file() else "transformers"
    lines = [
        "---", f"base_model: {base}", f"library_name: {library}", "---", f"# {folder.name}", "",
        f"Tuned from {base} by `python -m finetune.run` on {run['examples']} examples (hash {run['data']}), "
        f"{trained['result']['steps']} steps, seed {run['seed']}.", "",
        "## Recipe", "", *(f"- {name}: {value}" for name, value in recipe.items()), "",
        "## Verdict", "",
    ]  # fmt: skip
    if verdict is None:
        lines.append("Not measured.")
    else:
        rows = table(verdict["arms"])
        lines += [verdict["sentence"], "", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines += ["", f"Made with {versions}.", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def refresh_card(folder: Path, base: str) -> None:
    """Write the card of a folder that `finetune.run` made, from the files in it."""

    def read(name: str) -> Any:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    run, trained = read("run.json"), read("trained.json")
    if run and trained:
        write_card(folder, run, trained, read("verdict.json"), base)


def write_modelfile(folder: Path, tokenizer: Any, stops: list[str]) -> bool:
    """An Ollama Modelfile beside merged weights. False: the model's own template cannot be said in Ollama's language,
    so TEMPLATE is left out, and Ollama takes what the GGUF file holds."""
    chat = ollama_chat(tokenizer)
    lines = ["FROM ."]
    if chat is not None:
        lines.append(f'TEMPLATE """{chat.template}"""')
        lines += [f'SYSTEM """{chat.system}"""'] if chat.system else []
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return chat is not None


@dataclass(frozen=True, slots=True)
class OllamaChat:
    """A chat template as what stands around each role's words, and what asks for the answer."""

    around: dict[str, tuple[str, str]]
    asks: str
    system: str  # what the template says where nobody gives a system message

    @property
    def template(self) -> str:
        """In Ollama's language."""
        said = "".join(
            f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ end }}}}'
            for role, (before, after) in self.around.items()
        )
        return f"{{{{ range .Messages }}}}{said}{{{{ end }}}}{self.asks}"

    def render(self, messages: Sequence[Message]) -> str:
        """What Ollama will make of a conversation."""
        if self.system and messages[0][0] != "system":
            messages = [("system", self.system), *messages]
        return "".join(self.around[role][0] + text + self.around[role][1] for role, text in messages) + self.asks


def ollama_chat(tokenizer: Any) -> OllamaChat | None:
    """The model's template, read off what it makes of a conversation; None where another conversation shows that it is
    not as simple as that."""

    def own(*messages: Message) -> str:
        turns = [{"role": role, "content": text} for role, text in messages]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        start = tokenizer.bos_token or ""
        return text.removeprefix(start) if text.count(start) == 1 else text  # one at the front is Ollama's to write

    from jinja2 import TemplateError  # comes with the extra `local`

    try:
        start, to_user, to_answer, again, end = _parts(own(*_SAMPLE), [text for _, text in _SAMPLE])
        first, _ = _parts(own(_SAMPLE[1]), [_SAMPLE[1][1]])
        after_user = _shared_start(to_answer, end)
        system = ""
        if first.startswith(start) and first.endswith(to_user) and len(first) > len(start) + len(to_user):
            system = first[len(start) : len(first) - len(to_user)]
            first = _shared_start(to_user[::-1], again[::-1])[::-1]
        around = {
            "system": (start, to_user.removesuffix(first)),
            "user": (first, after_user),
            "assistant": (to_answer.removeprefix(after_user), again.removesuffix(first)),
        }
        chat = OllamaChat(around, end.removeprefix(after_user), system)
        tried = [_SAMPLE, _SAMPLE[1:], _SAMPLE[1:2], [*_SAMPLE, ("assistant", "Yes."), ("user", "Good.")]]
        return chat if all(chat.render(messages) == own(*messages) for messages in tried) else None
    except (TemplateError, ValueError):
        return None


_SAMPLE = [("system", "Be kind."), ("user", "What is it?"), ("assistant", "A lamp."), ("user", "Is it on?")]


def _shared_start(one: str, other: str) -> str:
    return "".join(letter for letter, _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def _parts(text: str, words: Sequence[str]) -> list[str]:
    """What stands before, between and after the words, which the text must hold in this order."""
    parts = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            raise ValueError(word)
        parts.append(before)
    return [*parts, text]


def commands(merged: Path, adapter: Path, base: str) -> list[str]:
    """What to run to use the model elsewhere."""
    rank = read_json(adapter / "adapter_config.json").get("r", 16)
    lora = "--enable-lora" + (f" --max-lora-rank {rank}" if rank > 16 else "")  # vLLM's own limit, else
    return [
        f"GGUF:   python llama.cpp/convert_hf_to_gguf.py {merged} --outtype q8_0 --outfile {merged.name}.gguf",
        f"Ollama: ollama create {merged.name} -f {merged / 'Modelfile'}",
        f"vLLM:   vllm serve {merged}",
        f"        vllm serve {base} {lora} --lora-modules {adapter.name}={adapter}",
    ]
