"""Prompt templates: one Markdown file each, in prompts/en and prompts/zh, filled by `$name`.

A template holds `# system`, what the model is to do, and `# user`, what it is asked. Examples are earlier turns:
the same `# user` filled with other values, and the answer it should have had. That is how a chat model has seen
examples in its training, and since they come first and stay the same, a server can cache them.

`$names` rather than `{names}`, because prompts are full of JSON braces. A name without a value and a value
without a name are both errors, so no setting can silently fail to reach the model. What is filled in is data:
a `$` or a brace inside it means nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from pipeline.errors import UsageError

SHIPPED = Path(__file__).parent.parent / "prompts"


class Prompts:
    """The templates of one language; those found in `own`, a folder of the user's, replace the shipped ones.

    A template of the user's is `own/<language>/<name>.md` or `own/<name>.md`.
    """

    def __init__(self, language: str, own: Path | None = None) -> None:
        self._texts: dict[str, str] = {}
        self._paths = {path.stem: path for path in sorted((SHIPPED / language).glob("*.md"))}
        if own is not None:
            found = self._find_own(own, language)
            wanted = {name: self._names(name) for name in found}
            self._paths |= found
            self._texts.clear()
            for name in found:  # here, before anything is sent or written
                self._compare_names(name, given=wanted[name])

    def _find_own(self, own: Path, language: str) -> dict[str, Path]:
        if not own.is_dir():
            raise UsageError(f"--prompts {own}: not a folder.")
        found = {path.stem: path for folder in (own, own / language) for path in sorted(folder.glob("*.md"))}
        for name, path in found.items():
            if name not in self._paths:
                nearest = difflib.get_close_matches(name, self._paths, n=1, cutoff=0.0)
                raise UsageError(f"{path}: there is no template {name!r}; the nearest is {nearest[0]!r}.")
        if not found:
            raise UsageError(f"--prompts {own}: holds no template; they are named {', '.join(sorted(self._paths))}.")
        return found

    def text(self, name: str) -> str:
        """The template's own text, without white space around it."""
        if name not in self._texts:
            try:
                self._texts[name] = self._paths[name].read_text(encoding="utf-8-sig").strip()
            except OSError as error:
                raise UsageError(f"{self._paths[name]}: cannot be read ({error.strerror}).") from error
            except UnicodeDecodeError as error:
                raise UsageError(f"{self._paths[name]}: not UTF-8 text ({error}).") from error
        return self._texts[name]

    def chat(
        self, name: str, values: Mapping[str, object], examples: Sequence[tuple[Mapping[str, object], str]] = ()
    ) -> tuple[tuple[str, str], ...]:
        """The messages of a request; each example is (values, the answer).

        Raises UsageError where the template and the values do not name the same things.
        """
        self._compare_names(name, given=set(values))
        system, user = self._sections(name)
        messages = [("system", Template(system).safe_substitute(values))] if system else []
        for example, answer in examples:
            messages += [("user", Template(user).substitute(example)), ("assistant", answer)]
        return (*messages, ("user", Template(user).substitute(values)))

    def _names(self, name: str) -> set[str]:
        """The $names of a template."""
        return {found for section in self._sections(name) for found in Template(section).get_identifiers()}

    def _compare_names(self, name: str, given: set[str]) -> None:
        wanted = self._names(name)
        if wanted != given:
            wrong = [f"${n} is unknown" for n in sorted(wanted - given)]
            wrong += [f"${n} is missing" for n in sorted(given - wanted)]
            raise UsageError(f"{self._paths[name]}: {', '.join(wrong)}.")

    def _sections(self, name: str) -> tuple[str, str]:
        """The texts under `# system` ("" where there is none) and `# user`; without headings all is the user's."""
        text = self.text(name)
        if not Template(text).is_valid():
            raise UsageError(f"{self._paths[name]}: a $ that starts no name; write $$ for the sign itself.")
        parts = re.split(r"^# (system|user)[ \t]*$", text, flags=re.MULTILINE)
        if len(parts) == 1:
            return "", text
        sections = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
        if parts[0].strip() or "user" not in sections or len(sections) != len(parts) // 2:
            raise UsageError(f"{self._paths[name]}: holds one `# user` section, after one `# system` section or none.")
        return sections.get("system", ""), sections["user"]

    def hashes(self, *names: str) -> dict[str, str]:
        """Template name -> the first 16 hex digits of its text's SHA-256."""
        return {name: hashlib.sha256(self.text(name).encode()).hexdigest()[:16] for name in names}


def read_prompts(own: Path | None = None) -> dict[str, Prompts]:
    """The templates of every language there is."""
    return {language: Prompts(language, own) for language in ("en", "zh")}
