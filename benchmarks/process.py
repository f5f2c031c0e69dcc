"""What it costs to talk with a sandboxed process, beside `anyio.open_process`, `Engine.run` and `Sandbox.run`.

Run it: python benchmarks/process.py [--rounds N]
Each round starts and waits for `true`, sends a kilobyte to `cat` and back a hundred times, and reads 500
MB, in each of the ways. Figures are medians and their ratios; only ratios inside one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from purplebox.isolation import Engine
from purplebox.policies import load_policy

_FLOOD_BYTES, _ECHOES = 500_000_000, 100
FLOOD = ["head", "-c", str(_FLOOD_BYTES), "/dev/zero"]


async def measured(work: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1e3


async def main(rounds: int, workspace: Path) -> None:
    async with (
        Engine(load_policy("base"), workspace) as engine,
        await engine.sandbox() as standing,
    ):

        async def start() -> None:
            async with await engine.start(["true"], stdin="null") as process:
                await process.wait()

        async def run() -> None:
            await engine.run(["true"])

        async def in_one() -> None:
            await standing.run(["true"])

        async def stand() -> None:
            async with await engine.sandbox() as sandbox:
                await sandbox.run(["true"])

        async def plain() -> None:
            async with await anyio.open_process(
                ["true"], stdin=subprocess.DEVNULL, start_new_session=True
            ) as process:
                await process.wait()

        async def echo() -> None:
            async with await engine.start(["cat"]) as process:
                for _ in range(_ECHOES):
                    await process.stdin.send(b"x" * 1024)
                    await process.stdout.receive()

        async def plain_echo() -> None:
            async with await anyio.open_process(["cat"]) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                for _ in range(_ECHOES):
                    await process.stdin.send(b"x" * 1024)
                    await process.stdout.receive()
                await process.stdin.aclose()

        async def flood() -> None:
            async with await engine.start(FLOOD, stdin="null") as process:
                size = 0
                async for data in process.stdout:
                    size += len(data)
                assert size == _FLOOD_BYTES

        async def plain_flood() -> None:
            async with await anyio.open_process(FLOOD, stdin=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                size = 0
                async for data in process.stdout:
                    size += len(data)
                assert size == _FLOOD_BYTES

        groups: dict[str, dict[str, Callable[[], Awaitable[None]]]] = {
            "true": {
                "anyio": plain,
                "start": start,
                "run": run,
                "Sandbox": in_one,
                "a Sandbox for it": stand,
            },
            f"{_ECHOES} echoes": {"anyio": plain_echo, "start": echo},
            "500 MB read": {"anyio": plain_flood, "start": flood},
        }
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for group, ways in groups.items():
                for way, work in ways.items():
                    found.setdefault((group, way), []).append(await measured(work))
                    await asyncio.sleep(0.01)  # the pool fills up again
        for (group, way), times in found.items():
            median, base = statistics.median(times), statistics.median(found[group, "anyio"])
            print(f"{group:12} {way:16} {median:9.2f} ms  {median / base:5.2f} x anyio")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(parser.parse_args().rounds, Path(directory)))
