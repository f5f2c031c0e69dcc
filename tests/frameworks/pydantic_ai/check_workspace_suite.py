"""pydantic-ai's own suite for workspace backends, and what it cannot see of ours."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from pydantic_ai.workspaces import WorkspaceBackend, WorkspaceRef, WorkspaceUnavailableError
from pydantic_ai.workspaces.conformance import WorkspaceBackendSuite

from purplebox import Gateway
from purplebox.gateway.gateway import SyncGateway
from purplebox.integrations.pydantic_ai import PurpleWorkspace


class TestPurpleWorkspace(WorkspaceBackendSuite):
    @pytest.fixture
    async def gateway(self, workspace: Path) -> AsyncIterator[Gateway]:
        async with Gateway(workspace=workspace) as gateway:
            yield gateway

    @pytest.fixture
    def backend(self, gateway: Gateway) -> WorkspaceBackend:
        return PurpleWorkspace(gateway)

    @pytest.fixture
    def fresh_backend(self, gateway: Gateway) -> Callable[[], WorkspaceBackend]:
        return lambda: PurpleWorkspace(gateway)

    @pytest.fixture
    def doomed(self, workspace: Path) -> Iterator[SyncGateway]:
        """The environment that is destroyed: a gateway of its own, on its own thread."""
        gateway = Gateway(workspace=workspace).sync()
        gateway.__enter__()
        yield gateway
        if gateway.gateway._version is not None:
            gateway.__exit__(None, None, None)

    @pytest.fixture
    def destructive_backend(self, doomed: SyncGateway) -> Callable[[], WorkspaceBackend]:
        return lambda: PurpleWorkspace(doomed)

    @pytest.fixture
    def attach_backend(
        self, gateway: Gateway, request: pytest.FixtureRequest
    ) -> Callable[[WorkspaceRef], WorkspaceBackend]:
        names = request.fixturenames
        used = request.getfixturevalue("doomed") if "destroy_environment" in names else gateway
        return lambda ref: PurpleWorkspace(used, ref)

    @pytest.fixture
    def destroy_environment(self, doomed: SyncGateway) -> Callable[[WorkspaceBackend], Awaitable[None]]:  # fmt: skip
        async def destroy(backend: WorkspaceBackend) -> None:
            await asyncio.to_thread(doomed.__exit__, None, None, None)

        return destroy

    @pytest.mark.xfail(
        reason="by design: nothing that a call starts outlives it, detached or not", run=False
    )
    async def test_a_backend_attached_by_ref_reaches_a_detached_process(self) -> None: ...  # type: ignore[override]

    async def test_cancellation_stops_foreground_work(  # type: ignore[override]
        self, gateway: Gateway, workspace: Path
    ) -> None:
        """The suite asks with `kill -0` in another sandbox, which has process ids of its own."""
        mark = f"{3600 + secrets.randbelow(1 << 30)}"

        def there() -> bool:
            needle = f"sleep\0{mark}\0".encode()
            return any(needle in _read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))

        task = asyncio.create_task(PurpleWorkspace(gateway).run(["sleep", mark]))
        while not there():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not there()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.anyio
async def test_another_workspaces_ref_is_unavailable(workspace: Path, tmp_path: Path) -> None:
    async with Gateway(workspace=workspace) as gateway:
        first = PurpleWorkspace(gateway)
        await first.working_dir()
        assert await PurpleWorkspace(gateway, first.ref).working_dir() == str(workspace)
        other = WorkspaceRef(provider="purple", id=str(tmp_path))
        with pytest.raises(WorkspaceUnavailableError):
            await PurpleWorkspace(gateway, other).working_dir()
