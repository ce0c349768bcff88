"""What could not be used of a graph's files, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

COMPLAINTS_A_FILE = 1000  # a file with more broken lines than that is not worth listing further


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something in a file that could not be used: where, why, and what it was."""

    where: str
    why: str
    text: str = ""


class Complaints:
    """What could not be used, at most COMPLAINTS_A_FILE of each file and a last one that counts the rest."""

    def __init__(self) -> None:
        self.found: list[Complaint] = []
        self._path, self._number = Path(), 0

    def start(self, path: Path) -> None:
        self._path, self._number = path, 0

    def add(self, place: str, why: str, text: str = "") -> None:
        self._number += 1
        if self._number <= COMPLAINTS_A_FILE:
            self.found.append(Complaint(f"{self._path.name}{place}", why, text[:200]))
        elif self._number == COMPLAINTS_A_FILE + 1:
            self.found.append(Complaint(self._path.name, f"more than {COMPLAINTS_A_FILE} broken lines; no more listed"))
