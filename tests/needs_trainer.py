"""For tests of the trainer: a file that imports this is skipped where the extra is missing; the process is made ready.

from tests.needs_trainer import MARKS, torch

pytestmark = MARKS
"""

from __future__ import annotations

import pytest

from finetune import bases

for _library in bases.LIBRARIES:
    pytest.importorskip(_library, reason="the trainer needs the extra: pip install -e .[local,train]")

bases.prepare()
import torch as torch  # noqa: E402  # after prepare, which sets what it reads when imported

MARKS = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("default"),  # what the libraries deprecate among themselves is theirs
]
