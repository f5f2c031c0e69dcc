"""What a sandbox costs a command while it runs: the same command outside and inside, interleaved.

Run it: python benchmarks/running.py [--rounds N]
Loops are Python's, timed inside, so that no start is counted: a null system call (`getppid`), open
and read of a file in the workspace. The compile is `gcc -O2` of a small program, where there is one;
`git status` is of a repository of 2000 files in the workspace; both with their start.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from purplebox.isolation import Engine
from purplebox.policies import load_policy

LOOP = """
import os, time
began = time.perf_counter()
{body}
print(time.perf_counter() - began)
"""
SYSCALLS = LOOP.format(body="for _ in range(300000): os.getppid()")
FILES = LOOP.format(
    body="for _ in range(20000):\n    fd = os.open('file', os.O_RDONLY); os.read(fd, 4096); os.close(fd)"
)
SOURCE = "#include <stdio.h>\n" + "".join(
    f"int f{n}(int x) {{ for (int i = 0; i < x; i++) x ^= i * {n}; return x; }}\n"
    for n in range(300)
)


def workspace() -> Path:
    """With a file, a source and a repository."""
    path = Path(tempfile.mkdtemp(prefix="purple-bench-"))
    path.chmod(0o755)
    (path / "file").write_bytes(b"x" * 4096)
    (path / "s.c").write_text(SOURCE + "int main(void) { return f1(3); }\n")
    for n in range(2000):
        place = path / "repository" / f"d{n % 50}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{n}.txt").write_text(str(n))
    git = ["git", "-C", str(path / "repository"), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    return path


async def measure(rounds: int) -> None:
    path = workspace()
    python = "/usr/bin/python3"
    commands: dict[str, tuple[list[str], bool]] = {
        "300 000 null system calls": ([python, "-c", SYSCALLS], True),
        "20 000 × open, read, close": ([python, "-c", FILES], True),
        "git status, 2000 files": (["git", "-C", "repository", "status", "--short"], False),
    }
    if shutil.which("gcc"):
        commands["gcc -O2, 300 functions"] = (["gcc", "-O2", "-o", "/tmp/out", "s.c"], False)

    async def outside(argv: list[str]) -> bytes:
        return subprocess.run(argv, cwd=path, check=True, capture_output=True).stdout

    try:
        async with Engine(load_policy("base"), path) as engine:

            async def inside(argv: list[str]) -> bytes:
                result = await engine.run(argv)
                assert result.exit_code == 0, result.stderr
                return result.stdout

            async def seconds(
                run: Callable[[list[str]], Awaitable[bytes]], argv: list[str], told: bool
            ) -> float:
                began = time.perf_counter()
                said = await run(argv)
                return float(said) if told else time.perf_counter() - began

            print("| command | outside ms | inside ms | × |\n|---|---|---|---|")
            for name, (argv, told) in commands.items():
                found: list[tuple[float, float]] = []
                for _ in range(rounds):
                    found.append(
                        (await seconds(outside, argv, told), await seconds(inside, argv, told))
                    )
                a, b = (statistics.median(column) * 1000 for column in zip(*found, strict=True))
                print(f"| {name} | {a:.0f} | {b:.0f} | {b / a:.2f} |")
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    asyncio.run(measure(parser.parse_args().rounds))
