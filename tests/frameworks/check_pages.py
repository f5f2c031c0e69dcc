"""The frameworks' pages: the programs on each run, in order, and print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "frameworks").glob("*.md"))
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def parts(page: Path, language: str) -> str:
    return "\n".join(text for name, text in BLOCK.findall(page.read_text()) if name == language)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_prints_what_it_shows(page: Path, workspace: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"  # a file, as a function's source is read from one
    program.write_text(parts(page, "python"))
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, cwd=workspace,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    shown = [line.rstrip() for line in parts(page, "text").splitlines() if line.strip()]
    printed = [line.rstrip() for line in run.stdout.splitlines() if line.strip()]
    pattern = ".*".join(map(re.escape, "\n".join(shown).split("...")))
    assert re.fullmatch(pattern, "\n".join(printed), re.DOTALL), run.stdout
