"""The engine without an event loop of the caller's own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from purplebox.isolation import CommandNotFound, SetupError, SyncEngine
from purplebox.policies import load_policy

BASE = load_policy("base")


def test_several_threads_run_at_once_and_errors_are_the_engines(workspace: Path) -> None:
    with SyncEngine(BASE, workspace) as engine:
        seen: list[bytes] = []

        def one(number: int) -> None:
            seen.append(engine.run(["echo", str(number)]).stdout)

        threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == [f"{n}\n".encode() for n in range(6)]
        with pytest.raises(CommandNotFound):
            engine.run(["nonesuch"])
        assert engine.call("list_directory", {}).value["entries"] == []


def test_an_engine_that_cannot_be_built_leaves_no_thread(tmp_path: Path) -> None:
    with pytest.raises(SetupError), SyncEngine(BASE, tmp_path / "nowhere"):
        pass
    assert "purple-engine" not in [thread.name for thread in threading.enumerate()]
