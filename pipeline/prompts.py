"""Prompt templates: one Markdown file each, in prompts/en and prompts/zh, filled by `$name`.

`$names` rather than `{names}`, because prompts are full of JSON braces. A name without a value and a value
without a name are both errors, so no setting can silently fail to reach the model. What is filled in is data:
a `$` or a brace inside it means nothing.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from string import Template

from pipeline.errors import UsageError

SHIPPED = Path(__file__).parent.parent / "prompts"


class Prompts:
    """The templates of one language; those found in `own`, a folder of the user's, replace the shipped ones.

    A template of the user's is `own/<language>/<name>.md` or `own/<name>.md`.
    """

    def __init__(self, language: str, own: Path | None = None) -> None:
        self._paths = {path.stem: path for path in sorted((SHIPPED / language).glob("*.md"))}
        if own is not None:
            self._paths |= self._find_own(own, language)
        self._texts: dict[str, str] = {}

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
                self._texts[name] = self._paths[name].read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as error:
                raise UsageError(f"{self._paths[name]}: not UTF-8 text ({error}).") from error
        return self._texts[name]

    def fill(self, name: str, **values: object) -> str:
        """The template with every `$name` replaced.

        Raises UsageError where the template and the values do not name the same things: a shipped template is
        right, so it is one of the user's that is not.
        """
        template = Template(self.text(name))
        if not template.is_valid():
            raise UsageError(f"{self._paths[name]}: a $ that starts no name; write $$ for the sign itself.")
        wanted, given = set(template.get_identifiers()), set(values)
        if wanted != given:
            wrong = [f"${n} is unknown" for n in sorted(wanted - given)] + [
                f"${n} is missing" for n in sorted(given - wanted)
            ]
            raise UsageError(f"{self._paths[name]}: {', '.join(wrong)}.")
        return template.substitute({name: str(value) for name, value in values.items()})

    def hashes(self, *names: str) -> dict[str, str]:
        """Template name -> the first 16 hex digits of its text's SHA-256."""
        return {name: hashlib.sha256(self.text(name).encode()).hexdigest()[:16] for name in names}
