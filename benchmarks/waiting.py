"""What sandboxes cost that wait: memory of kernel and processes together, and the time to have them.

Run it: python benchmarks/waiting.py [--count N]
Memory is the change of what the kernel counts as its own and as processes' (`_KINDS`; proc_meminfo(5))
while N sandboxes become ready after a few others, divided by N. Medians of rounds. (MemAvailable, by which
it was measured before, also counts what was freed a moment ago: the same build gave 178 to 533 kB.)
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from purplebox.isolation import Engine
from purplebox.isolation.marks import Marks
from purplebox.isolation.pool import Ready, prepare
from purplebox.policies import load_policy

_KINDS = ("SUnreclaim", "SReclaimable", "KernelStack", "PageTables", "AnonPages", "Shmem", "Percpu")
_BEFORE = 20  # sandboxes, for what the first ones alone need
_SETTLE_SECONDS = 0.5  # the kernel frees some of what starting them took a moment later


def used_bytes() -> int:
    """Of all kinds together."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    return sum(found[kind] for kind in _KINDS)


async def measure(count: int, rounds: int) -> None:
    workspace = Path(tempfile.mkdtemp(prefix="purple-bench-"))
    workspace.chmod(0o755)
    sizes: list[float] = []
    times: list[float] = []
    try:
        for _ in range(rounds):
            async with Engine(load_policy("base"), workspace) as engine:
                await engine.run(["true"])

                async def some(number: int, engine: Engine = engine) -> list[Ready]:
                    link = engine._link
                    return await asyncio.gather(
                        *(prepare(link, Marks(), "null") for _ in range(number))
                    )

                others = await some(_BEFORE)
                await asyncio.sleep(_SETTLE_SECONDS)
                before, began = used_bytes(), time.perf_counter()
                ready = await some(count)
                times.append(time.perf_counter() - began)
                await asyncio.sleep(_SETTLE_SECONDS)
                sizes.append((used_bytes() - before) / count)
                for sandbox in others + ready:
                    engine._discard(sandbox)
    finally:
        shutil.rmtree(workspace)
    print("| sandboxes | kB each | seconds until ready |\n|---|---|---|")
    print(f"| {count} | {statistics.median(sizes) / 1000:.0f} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # Seven descriptors for each.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(measure(arguments.count, arguments.rounds))
