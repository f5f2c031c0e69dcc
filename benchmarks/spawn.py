"""How long a sandboxed command takes, beside its peers, interleaved in one run.

Run it: python benchmarks/spawn.py [--rounds N] [--only first]
Peers: `subprocess.run(…, start_new_session=True)` from this asyncio process; bubblewrap with
the same restrictions (read-only binds, private /tmp /dev /proc, uid 1000 in a user namespace, no
network, no capabilities, new session; no seccomp, no Landlock, no cgroup); firejail without a
profile, crun and @anthropic-ai/sandbox-runtime (srt), where they are installed: peers.py. Figures are
medians and their ratios; only ratios inside one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from peers import Peers

from purplebox.isolation import Engine
from purplebox.isolation.forkserver import FORK_SERVER
from purplebox.isolation.syscalls import GROUPS
from purplebox.policies import Policy, load_policy

Case = Callable[[], Awaitable[None]]
_WARM_UP = 5  # rounds that do not count


class CpuTime:
    """CPU time of this process and of whatever comes of it, counted by a cgroup (v1) of its own.

    Unlike wall time it is not changed by what else the machine does. None where it cannot be had.
    """

    def __init__(self) -> None:
        self._path = Path(f"/sys/fs/cgroup/cpuacct/purple-bench-{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.mkdir()
            (self._path / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float | None:
        try:
            return int((self._path / "cpuacct.usage").read_text()) / 1e9
        except OSError:
            return None

    def close(self) -> None:
        FORK_SERVER.close()  # its keepers have groups of their own in this one
        with contextlib.suppress(OSError):
            (self._path.parent / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(500):
            with contextlib.suppress(OSError):
                self._path.rmdir()
                return
            time.sleep(0.01)  # until those keepers have ended


async def nothing() -> None:
    """For `interleave`."""


async def interleave(
    cases: dict[str, Case], rounds: int, pause: float, after: Case = nothing
) -> dict[str, float]:
    """Median seconds of each case; in each round every case runs once, and `after` it, not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(_WARM_UP + rounds):
        for name, case in cases.items():
            await asyncio.sleep(pause)
            start = time.perf_counter()
            await case()
            if number >= _WARM_UP:
                times[name].append(time.perf_counter() - start)
            await after()
    return {name: statistics.median(found) for name, found in times.items()}


def plain(*argv: str) -> Case:
    async def case() -> None:
        subprocess.run(argv, start_new_session=True, check=True)

    return case


def table(title: str, medians: dict[str, float]) -> None:
    base, peer = medians["subprocess"], medians.get("bwrap")
    print(f"\n{title}\n| case | median ms | × subprocess | × bwrap |\n|---|---|---|---|")
    for name, value in medians.items():
        ratio = f"{value / peer:.2f}" if peer else "-"
        print(f"| {name} | {value * 1000:.2f} | {value / base:.2f} | {ratio} |")


async def measure(rounds: int, only: str) -> None:
    ballast = bytearray(40 << 20)  # the gateway of a real user is no small process
    ballast[::4096] = b"x" * len(ballast[::4096])
    workspace = Path(tempfile.mkdtemp(prefix="purple-bench-"))
    workspace.chmod(0o755)
    policy = load_policy("base")
    try:
        with Peers(workspace) as peers:
            for name, reason in peers.missing.items():
                print(f"without {name}: {reason}")
            if only in ("", "ready"):
                await measure_ready(rounds, policy, workspace, peers)
            if only in ("", "first"):
                await measure_first(rounds, policy, workspace, peers)
    finally:
        shutil.rmtree(workspace)


async def measure_ready(rounds: int, policy: Policy, workspace: Path, peers: Peers) -> None:
    """Commands in sandboxes that wait: one after the other, and many at once."""
    cpu = CpuTime()
    try:
        async with Engine(policy, workspace) as engine:
            for command in (["true"], ["/usr/bin/python3", "-c", "pass"]):

                async def ours(command: list[str] = command) -> None:
                    await engine.run(command)

                cases: dict[str, Case] = {"subprocess": plain(*command), "purple": ours}
                if "bwrap" in peers.commands:
                    cases["bwrap"] = plain(*peers.command("bwrap", *command))
                table(" ".join(command), await interleave(cases, rounds, 0.02))

            # Apart: who comes after them in a round has lost its place in the processors' caches.
            far = {
                name: plain(*peers.command(name, "true"))
                for name in peers.commands
                if name != "bwrap"
            }
            if far:
                cases = {"subprocess": plain("true"), **far}
                table("true, peers that are slower", await interleave(cases, rounds // 4, 0.02))

            async def many(case: Case, total: int, flight: int) -> float:
                gate = asyncio.Semaphore(flight)

                async def one() -> None:
                    async with gate:
                        await case()

                start = time.perf_counter()
                await asyncio.gather(*(one() for _ in range(total)))
                return total / (time.perf_counter() - start)

            def threaded(*argv: str) -> Case:
                async def case() -> None:
                    process = await asyncio.create_subprocess_exec(
                        *argv, start_new_session=True, stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    )  # fmt: skip
                    await process.communicate()

                return case

            async def true() -> None:
                await engine.run(["true"])

            many_at_once: dict[str, Case] = {"subprocess": threaded("true"), "purple": true}
            if "bwrap" in peers.commands:
                many_at_once["bwrap"] = threaded(*peers.command("bwrap", "true"))
            for title, total, pause in (
                ("burst of 8", 8, 0.5),
                ("sustained, 8 in flight", 200, 0.5),
            ):
                rates: dict[str, list[float]] = {name: [] for name in many_at_once}
                used: dict[str, list[float]] = {name: [] for name in many_at_once}
                for _ in range(max(3, rounds // (10 if total == 8 else 40))):
                    for name, case in many_at_once.items():
                        await asyncio.sleep(pause)
                        before = cpu.seconds()
                        rates[name].append(await many(case, total, 8))
                        await asyncio.sleep(pause)  # replacements are part of the cost
                        after = cpu.seconds()
                        if before is not None and after is not None:
                            used[name].append((after - before) / total)
                print(f"\n{title}\n| case | calls/s | × bwrap | CPU ms a call | bwrap's ÷ that |")
                print("|---|---|---|---|---|")
                for name, found in rates.items():
                    peer = "bwrap" if "bwrap" in many_at_once else name
                    ratio = statistics.median(found) / statistics.median(rates[peer])
                    line = f"| {name} | {statistics.median(found):.0f} | {ratio:.2f} |"
                    if mine := used[name]:
                        share = statistics.median(used[peer]) / statistics.median(mine)
                        line += f" {statistics.median(mine) * 1000:.2f} | {share:.2f} |"
                    print(line)
    finally:
        cpu.close()


async def measure_first(rounds: int, policy: Policy, workspace: Path, peers: Peers) -> None:
    """The first command of an engine, which nothing is ready for."""
    engines: list[Engine] = []
    # Made before: what is measured has a policy that is loaded.
    others = iter([*itertools.islice(filters_of_their_own(policy), _WARM_UP + rounds)])

    async def first(policy: Policy = policy) -> None:
        engines.append(await Engine(policy, workspace).__aenter__())
        await engines[0].run(["true"])

    async def first_of_all() -> None:
        await first(next(others))

    async def end() -> None:
        while engines:
            await engines.pop().aclose()

    async def first_and_end() -> None:
        await first()
        await end()

    cases = {
        "subprocess": plain("true"),
        "purple": first,
        "purple, with its end": first_and_end,
        "purple, no engine had its filter before": first_of_all,
    }
    if "bwrap" in peers.commands:
        cases["bwrap"] = plain(*peers.command("bwrap", "true"))
    table(
        "first call of a policy in a gateway that runs: start of an engine, and its first command",
        await interleave(cases, rounds, 0.05, end),
    )


def filters_of_their_own(policy: Policy) -> Iterator[Policy]:
    """Policies that differ from this one, and from each other, in what seccomp refuses."""
    for names in itertools.permutations(GROUPS["@ipc"], 3):
        deny = (*policy.syscalls.deny, *names)
        yield policy.model_copy(
            update={"syscalls": policy.syscalls.model_copy(update={"deny": deny})}
        )


def end(number: int, _: object) -> None:
    """On a signal: by way of every `finally`."""
    sys.exit(128 + number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", choices=("", "ready", "first"), default="")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    asyncio.run(measure(arguments.rounds, arguments.only))
