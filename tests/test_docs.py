"""The documentation's code: each block runs, loads or parses, by the language of its fence.

python      run, the blocks of a page in order as one program, in an empty workspace
console     each `$ command` is run by bash; the lines after it are what it prints, `...` for any text
yaml        a policy where it starts with `name:`; YAML anyway
json, toml  parsed
sh          each line that starts with `purple ` is a command line that `purple` takes
text, diff  shown
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from purplebox.gateway.cli import build_parser
from purplebox.integrations.clients.commands import add_parsers
from purplebox.policies import load_policy

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
# The programs on these run where the frameworks are installed: tests/frameworks/run.
FRAMEWORKS = ROOT / "docs" / "frameworks"
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
Block = tuple[Path, int, str, str]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            yield page, text.count("\n", 0, match.start()) + 1, match[1], match[2]


def of(*languages: str) -> list[object]:
    return [
        pytest.param(block, id=f"{block[0].name}:{block[1]}")
        for block in blocks()
        if block[2] in languages
    ]


@pytest.fixture
def place(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return workspace


def test_every_block_has_a_language_that_is_checked() -> None:
    known = {"python", "console", "yaml", "json", "toml", "sh", "text", "diff"}
    wrong = [f"{page.name}:{line}: {name!r}" for page, line, name, _ in blocks() if name not in known]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent != FRAMEWORKS], ids=lambda page: page.name
)
def test_python_of_a_page_runs(page: Path, place: Path) -> None:
    program = "\n".join(text for at, _, name, text in blocks() if (at, name) == (page, "python"))
    if not program:
        return
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("block", of("console"))
def test_a_session_prints_what_is_shown(block: Block, place: Path) -> None:
    for part in re.split(r"^\$ ", block[3], flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        run = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        pattern = ".*".join(map(re.escape, shown.strip().split("...")))
        assert re.fullmatch(pattern, run.stdout.strip(), re.DOTALL), f"$ {command}\n{run.stdout}"


@pytest.mark.parametrize("block", of("yaml", "json", "toml"))
def test_data_is_what_it_says(block: Block, tmp_path: Path) -> None:
    _, _, language, text = block
    if language == "json":
        json.loads(text)
    elif language == "toml":
        tomllib.loads(text)
    elif re.search(r"^name:", text, re.MULTILINE):
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        load_policy(str(path))
    else:
        yaml.safe_load(text)


@pytest.mark.parametrize("block", of("sh"))
def test_commands_are_command_lines_that_exist(block: Block) -> None:
    for line in block[3].replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["purple"]:
            build_parser(add_parsers).parse_args(words[1:])
