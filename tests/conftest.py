"""Fixtures and the rule that a skip in CI is a failure."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

ALLOWED_SKIPS = (Path(__file__).parent / "allowed_skips.txt").read_text().splitlines()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own configuration, state or log."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    # The one cache that tests share: compiling the detectors' rules takes six seconds.
    cache = Path(tempfile.gettempdir()) / f"purple-tests-rules-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("KF_RULE_CACHE_DIR", str(cache))
    return home


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Chooses a port of the loopback for what cannot be told to choose one itself.

    None that the kernel gives to whoever asks for any, as all other tests do: such a one could be another's
    before it is used. ip(7), ip_local_port_range.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    def choose() -> int:
        while True:
            port = random.randrange(1 << 14, 1 << 16)
            if not first <= port <= last:
                with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                    return port

    return choose


def _converse(
    argv: Sequence[str], messages: Iterable[Mapping[str, Any]], **options: Any
) -> list[dict[str, Any]]:
    received: list[dict[str, Any]] = []
    messages = [{"jsonrpc": "2.0", **message} for message in messages]
    wanted = {message["id"] for message in messages if "id" in message}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, **options) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("".join(json.dumps(message) + "\n" for message in messages))
        process.stdin.flush()
        for line in process.stdout:
            received.append(json.loads(line))
            if "method" not in received[-1]:
                wanted.discard(received[-1]["id"])
            if not wanted:
                process.stdin.close()
    assert process.returncode == 0
    return received


@pytest.fixture
def converse() -> Callable[..., list[dict[str, Any]]]:
    """Sends a program on its stdin messages of JSON-RPC and returns all that it said on its stdout.

    Its stdin is closed when all have been answered: a gateway that hears its client leave gives what
    is in flight a second, which on a busy machine is too little.
    """
    return _converse


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Have a test that hangs end the session, and say where it waits.

    To fail it would not end it: fixtures of what awaits take their turn after it, so they wait for ever.
    """

    def give_up(*_: object) -> None:
        if capture := cast(Any, item.config.pluginmanager.getplugin("capturemanager")):
            capture.suspend_global_capture(item)
        stderr = sys.__stderr__
        print(f"\n{item.nodeid} hangs: it has taken {settings.timeout} s", file=stderr)
        with contextlib.suppress(RuntimeError):  # no event loop
            for task in asyncio.all_tasks():
                task.print_stack(file=stderr)
        faulthandler.dump_traceback(stderr or 2)
        os._exit(1)

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """The test has ended."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        if not any(allowed and allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, reason not in tests/allowed_skips.txt: {reason}"
    return report
