"""What sandboxes cost that wait: memory of kernel and processes together, and the time to have them.

Run it: python benchmarks/waiting.py [--count N]
Memory is the change of MemAvailable (proc_meminfo(5)) while N sandboxes become ready, divided by N:
it counts everything, and everything else that happens on the machine, too. Medians of rounds.
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
from purplebox.isolation.pool import prepare
from purplebox.policies import load_policy


def available_bytes() -> int:
    """MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no MemAvailable")


async def measure(count: int, rounds: int) -> None:
    workspace = Path(tempfile.mkdtemp(prefix="purple-bench-"))
    workspace.chmod(0o755)
    sizes: list[float] = []
    times: list[float] = []
    try:
        for _ in range(rounds):
            async with Engine(load_policy("base"), workspace) as engine:
                await engine.run(["true"])
                before, began = available_bytes(), time.perf_counter()
                ready = await asyncio.gather(
                    *(prepare(engine._link, Marks(), "null") for _ in range(count))
                )
                times.append(time.perf_counter() - began)
                sizes.append((before - available_bytes()) / count)
                for sandbox in ready:
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
    # Five descriptors for each.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(measure(arguments.count, arguments.rounds))
