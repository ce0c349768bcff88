"""What goes with a tuned model: a card that says what it was made of, an Ollama Modelfile, and commands for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.verdict import table

# The chat templates that Ollama can be told in its own language, known by what their prompts hold.
_OLLAMA = {
    "<|im_start|>": (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    ),
    "<|start_header_id|>": (
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "### Assistant:": (
        "{{ range .Messages }}### {{ if eq .Role \"user\" }}User{{ else if eq .Role \"system\" }}System{{ else }}"
        "Assistant{{ end }}:\n{{ .Content }}\n\n{{ end }}### Assistant:\n"
    ),
}  # fmt: skip


def write_card(
    folder: Path, run: dict[str, Any], trained: dict[str, Any], verdict: dict[str, Any] | None, base: str
) -> None:
    """README.md: base, data by hash, recipe, verdict. No path of this machine is in it."""
    recipe = {name: value for name, value in run["recipe"].items() if value is not None}
    lines = [
        "---", f"base_model: {base}", "library_name: peft", "---", f"# {folder.name}", "",
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


def write_modelfile(folder: Path, prompt: str, stops: list[str]) -> None:
    """An Ollama Modelfile beside merged weights; without TEMPLATE where the prompt is of a family not known here."""
    lines = ["FROM ."]
    template = next((known for mark, known in _OLLAMA.items() if mark in prompt), None)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")


def commands(merged: Path, adapter: Path, base: str) -> list[str]:
    """What to run to use the model elsewhere."""
    return [
        f"GGUF:   python llama.cpp/convert_hf_to_gguf.py {merged} --outtype q8_0 --outfile {merged.name}.gguf",
        f"Ollama: ollama create {merged.name} -f {merged / 'Modelfile'}",
        f"vLLM:   vllm serve {merged}",
        f"        vllm serve {base} --enable-lora --lora-modules {adapter.name}={adapter}",
    ]
