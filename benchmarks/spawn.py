"""How long a sandboxed command takes, beside its peers, interleaved in one run.

Run it: python benchmarks/spawn.py [--rounds N] [--only first]
Peers: `subprocess.run(…, start_new_session=True)` from this asyncio process, and bubblewrap with
the same restrictions (read-only binds, private /tmp /dev /proc, uid 1000 in a user namespace, no
network, no capabilities, new session; no seccomp, no Landlock, no cgroup), and firejail without a
profile, where they are installed. Figures are medians and their ratios; only ratios inside
one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from purplebox.isolation import Engine
from purplebox.policies import Policy, load_policy

FIREJAIL = (
    "firejail", "--quiet", "--noprofile", "--net=none", "--private-tmp", "--private-dev",
    "--caps.drop=all", "--nonewprivs", "--seccomp",
)  # fmt: skip
Case = Callable[[], Awaitable[None]]


def bwrap(workspace: Path) -> list[str]:
    """bubblewrap's command line for what `base` holds."""
    links = [
        p for p in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32") if Path(p).is_symlink()
    ]
    arguments = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--uid",
        "1000",
        "--gid",
        "1000",
    ]
    arguments += ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"]
    for path in links:
        arguments += ["--symlink", str(Path(path).readlink()), path]
    arguments += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    return [*arguments, "--bind", str(workspace), str(workspace), "--chdir", str(workspace)]


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
        with contextlib.suppress(OSError):
            (self._path.parent / "cgroup.procs").write_text(str(os.getpid()))
            self._path.rmdir()


async def nothing() -> None:
    """For `interleave`."""


async def interleave(
    cases: dict[str, Case], rounds: int, pause: float, after: Case = nothing
) -> dict[str, float]:
    """Median seconds of each case; in each round every case runs once, and `after` it, not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 5):
        for name, case in cases.items():
            await asyncio.sleep(pause)
            start = time.perf_counter()
            await case()
            if number >= 5:
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
    box = bwrap(workspace) if shutil.which("bwrap") else None
    try:
        if only in ("", "ready"):
            await measure_ready(rounds, policy, workspace, box)
        if only in ("", "first"):
            await measure_first(rounds, policy, workspace, box)
    finally:
        shutil.rmtree(workspace)


async def measure_ready(
    rounds: int, policy: Policy, workspace: Path, box: list[str] | None
) -> None:
    """Commands in sandboxes that wait: one after the other, and many at once."""
    cpu = CpuTime()
    try:
        async with Engine(policy, workspace) as engine:
            for command in (["true"], ["/usr/bin/python3", "-c", "pass"]):

                async def ours(command: list[str] = command) -> None:
                    await engine.run(command)

                cases: dict[str, Case] = {"subprocess": plain(*command), "purple": ours}
                if box:
                    cases["bwrap"] = plain(*box, *command)
                if shutil.which("firejail"):
                    cases["firejail"] = plain(*FIREJAIL, *command)
                table(" ".join(command), await interleave(cases, rounds, 0.02))

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

            peers: dict[str, Case] = {"subprocess": threaded("true"), "purple": true}
            if box:
                peers["bwrap"] = threaded(*box, "true")
            for title, total, pause in (
                ("burst of 8", 8, 0.5),
                ("sustained, 8 in flight", 200, 0.5),
            ):
                rates: dict[str, list[float]] = {name: [] for name in peers}
                used: dict[str, list[float]] = {name: [] for name in peers}
                for _ in range(max(3, rounds // (10 if total == 8 else 40))):
                    for name, case in peers.items():
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
                    peer = "bwrap" if box else name
                    ratio = statistics.median(found) / statistics.median(rates[peer])
                    line = f"| {name} | {statistics.median(found):.0f} | {ratio:.2f} |"
                    if mine := used[name]:
                        share = statistics.median(used[peer]) / statistics.median(mine)
                        line += f" {statistics.median(mine) * 1000:.2f} | {share:.2f} |"
                    print(line)
    finally:
        cpu.close()


async def measure_first(
    rounds: int, policy: Policy, workspace: Path, box: list[str] | None
) -> None:
    """The first command of an engine, which nothing is ready for."""
    engines: list[Engine] = []

    async def first() -> None:
        engines.append(await Engine(policy, workspace).__aenter__())
        await engines[0].run(["true"])

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
    }
    if box:
        cases["bwrap"] = plain(*box, "true")
    table(
        "first call of a policy in a gateway that runs: start of an engine, and its first command",
        await interleave(cases, rounds, 0.05, end),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", choices=("", "ready", "first"), default="")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.rounds, arguments.only))
