"""A gateway with processes in the background, and what it has recorded of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Outcome
from purplebox.policies import Policy, load_policy

BASE = load_policy("base").model_dump(by_alias=True)
LONG = {"wait_seconds": 60}  # at the most: it ends with the first line


class Here:
    """One directory: its gateway's workspace, and its record."""

    def __init__(self, path: Path) -> None:
        self.workspace = path / "workspace"
        self._log = path / "log"

    def policy(self, **sections: Any) -> Policy:
        return Policy.model_validate({**BASE, "name": "test", **sections})

    @asynccontextmanager
    async def entered(self, held: Policy | None = None, **more: Any) -> AsyncGenerator[Gateway]:
        self.workspace.mkdir(exist_ok=True)
        async with Gateway(
            held or self.policy(), self.workspace, audit_log=self._log, **more
        ) as gateway:
            yield gateway

    async def start(self, gateway: Gateway, command: str, **more: Any) -> str:
        asked = {"command": command, "wait_seconds": 0}
        return str(self.content(await gateway.call("process_start", asked, **more))["process_id"])

    async def run(self, gateway: Gateway, command: str, **more: Any) -> str:
        """Start one and wait for its end, which may be there when it has been started."""
        asked = {"command": command, **LONG}
        said = self.content(await gateway.call("process_start", asked, **more))
        asked = {"process_id": said["process_id"], **LONG}
        while said["running"]:
            said = self.content(await gateway.call("process_output", asked, **more))
        return str(said["process_id"])

    def content(self, outcome: Outcome) -> dict[str, Any]:
        assert outcome.content is not None, outcome.text
        return outcome.content

    def records(self, tool: str = "process") -> list[dict[str, Any]]:
        """Begin and end of each record of `tool`, as one."""
        found: dict[str, dict[str, Any]] = {}
        for _, entry in entries(self._log):
            if entry is not None:
                kept = found.setdefault(entry["call_id"], {"events": []})
                kept["events"].append(entry["event"])
                kept.update(entry)
        return [record for record in found.values() if record.get("tool") == tool]


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)
