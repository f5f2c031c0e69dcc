"""OpenAI Agents SDK: `pip install 'purplebox[openai-agents]'`.

`purple_shell` is the executor of a `ShellTool`; `PurpleSandboxClient` gives a `SandboxAgent` the
gateway's workspace as its sandbox; `purple_tools` are Purple's own as function tools.
"""

from __future__ import annotations

import io
import json
import posixpath
import shlex
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, cast

from agents import FunctionTool, RunContextWrapper, ShellCommandRequest, ShellResult
from agents.sandbox import Manifest
from agents.sandbox.errors import (
    ExecTimeoutError,
    ExecTransportError,
    WorkspaceArchiveReadError,
    WorkspaceArchiveWriteError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.session import (
    BaseSandboxClient,
    BaseSandboxClientOptions,
    BaseSandboxSession,
    SandboxSession,
    SandboxSessionState,
)
from agents.sandbox.snapshot import SnapshotBase, SnapshotSpec, resolve_snapshot
from agents.sandbox.types import ExecResult, User
from agents.tool import ShellCallOutcome, ShellCommandOutput

from .bridge import AnyGateway, Bridge
from .workspace import WorkspaceAccess

CLIENT = "openai-agents"


def purple_tools(gateway: AnyGateway, only: list[str] | None = None) -> list[FunctionTool]:
    """Purple's own tools for an `Agent`; a refusal is the tool's answer, the reason code first.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`.
        only: Names of the tools that are wanted; None is all.
    """
    bridge = Bridge(gateway)
    return [
        FunctionTool(
            name=tool.name, description=tool.description, params_json_schema=tool.input_schema,
            on_invoke_tool=_invoker(bridge, tool.name), strict_json_schema=False,
        )
        for tool in bridge.gateway.tools()
        if only is None or tool.name in only
    ]  # fmt: skip


def _invoker(bridge: Bridge, name: str) -> Callable[[Any, str], Awaitable[str]]:
    async def invoke(context: RunContextWrapper[Any], arguments: str) -> str:
        try:
            parsed: Any = json.loads(arguments or "{}")
        except ValueError:
            parsed = None
        # What is no object is refused, and recorded, as arguments that do not fit.
        asked = cast(Any, parsed) if isinstance(parsed, dict) else {"arguments": arguments}
        outcome = await bridge.acall(name, asked, client=CLIENT)
        refused = outcome.is_error and outcome.content is None
        return f"[{outcome.reason}] {outcome.text}" if refused else outcome.text

    return invoke


def purple_shell(gateway: AnyGateway) -> Callable[[ShellCommandRequest], Awaitable[ShellResult]]:
    """For `ShellTool(executor=purple_shell(gateway))`: each command in a sandbox of its own.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`.

    A refused command has the refusal as its stderr and exit status 126; the ones after it still run.
    """
    access = WorkspaceAccess(gateway, client=CLIENT)

    async def execute(request: ShellCommandRequest) -> ShellResult:
        action = request.data.action
        limit = action.timeout_ms / 1000 if action.timeout_ms else None
        output = [await _command(access, command, limit) for command in action.commands]
        return ShellResult(output=output, max_output_length=action.max_output_length)

    return execute


async def _command(
    access: WorkspaceAccess, command: str, limit: float | None
) -> ShellCommandOutput:
    try:
        done = await access.arun(command, timeout_seconds=limit)
    except PermissionError as error:
        outcome = ShellCallOutcome(type="exit", exit_code=126)
        return ShellCommandOutput(stderr=str(error.strerror), outcome=outcome, command=command)
    notes = "".join(f"\n[{note}]" for note in done.notes)
    outcome = (
        ShellCallOutcome(type="timeout")
        if done.timed_out
        else ShellCallOutcome(type="exit", exit_code=done.exit_code)
    )
    return ShellCommandOutput(
        stdout=done.stdout, stderr=done.stderr + notes, outcome=outcome, command=command
    )


class PurpleSandboxOptions(BaseSandboxClientOptions):
    """There are none: policy and workspace are the gateway's."""

    type: Literal["purple"] = "purple"  # pyright: ignore[reportIncompatibleVariableOverride]


class PurpleSandboxState(SandboxSessionState):
    """What a run is resumed with: the workspace is in the manifest's root."""

    type: Literal["purple"] = "purple"  # pyright: ignore[reportIncompatibleVariableOverride]


class PurpleSandboxSession(BaseSandboxSession):
    """A gateway's workspace as a session. Each command and file operation is a call of its own."""

    state: PurpleSandboxState  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, access: WorkspaceAccess, state: PurpleSandboxState) -> None:
        self.state = state  # pyright: ignore[reportIncompatibleVariableOverride]
        self._access = access
        self._running = False

    async def _after_start(self) -> None:
        self._running = True

    async def _after_shutdown(self) -> None:
        self._running = False

    async def provision_manifest_accounts(self) -> None:
        """None can be: a sandbox has one user."""
        if self.state.manifest.users or self.state.manifest.groups:
            raise ValueError(
                "a Purple sandbox has one user; take users and groups out of the manifest"
            )

    async def _exec_internal(
        self, *command: str | Path, timeout: float | None = None
    ) -> ExecResult:
        words = [str(word) for word in command]
        # A shell for a line: the gateway has one already, and its rules see the line.
        line = words[2] if words[:2] == ["sh", "-lc"] and len(words) == 3 else shlex.join(words)
        environment = await self.state.manifest.environment.resolve()
        try:
            done = await self._access.arun(line, timeout_seconds=timeout, env=environment)
        except PermissionError as error:
            return ExecResult(stdout=b"", stderr=str(error.strerror).encode(), exit_code=126)
        except OSError as error:
            raise ExecTransportError(command=command, cause=error) from error
        if done.timed_out:
            raise ExecTimeoutError(command=command, timeout_s=timeout)
        notes = "".join(f"[{note}]\n" for note in done.notes)
        stderr = (done.stderr + notes).encode()
        return ExecResult(stdout=done.stdout.encode(), stderr=stderr, exit_code=done.exit_code)

    async def read(self, path: Path, *, user: str | User | None = None) -> io.IOBase:
        """As the base class; at most 32 MiB, and no other user."""
        _refuse_user(user)
        try:
            return io.BytesIO(await self._access.aread(str(self.normalize_path(path))))
        except FileNotFoundError as error:
            raise WorkspaceReadNotFoundError(path=path, cause=error) from error
        except OSError as error:
            raise WorkspaceArchiveReadError(path=path, cause=error) from error

    async def write(self, path: Path, data: io.IOBase, *, user: str | User | None = None) -> None:
        """As the base class; no other user."""
        _refuse_user(user)
        given: Any = cast(Any, data).read()
        content: bytes = given.encode() if isinstance(given, str) else given
        try:
            await self._access.awrite(str(self.normalize_path(path, for_write=True)), content)
        except OSError as error:
            raise WorkspaceArchiveWriteError(path=path, cause=error) from error

    async def running(self) -> bool:
        """As the base class."""
        return self._running

    async def persist_workspace(self) -> io.IOBase:
        """A tar of the workspace, at most 32 MiB. It stays where it is, so only a snapshot needs it."""
        name = posixpath.join(self._access.root, f".purple-{uuid.uuid4().hex}.tar")
        skip = [f"--exclude=./{path}" for path in self._persist_workspace_skip_relpaths()]
        words = ["tar", *skip, f"--exclude=./{posixpath.basename(name)}", "-cf", name, "."]
        try:
            await self._tar(words)
            return io.BytesIO(await self._access.adownload(name))
        except OSError as error:
            raise WorkspaceArchiveReadError(path=Path(self._access.root), cause=error) from error
        finally:
            await self._access.arun(shlex.join(["rm", "-f", name]))

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        """Unpack a tar into the workspace, in the sandbox."""
        name = posixpath.join(self._access.root, f".purple-{uuid.uuid4().hex}.tar")
        try:
            await self._access.awrite(name, cast(Any, data).read())
            await self._tar(["tar", "--no-same-owner", "-xf", name])
        except OSError as error:
            raise WorkspaceArchiveWriteError(path=Path(self._access.root), cause=error) from error
        finally:
            await self._access.arun(shlex.join(["rm", "-f", name]))

    async def _tar(self, words: list[str]) -> None:
        done = await self._access.arun(shlex.join(words))
        if done.exit_code != 0:
            raise OSError(done.text[:500])


class PurpleSandboxClient(BaseSandboxClient[PurpleSandboxOptions | None]):
    """For `RunConfig(sandbox=SandboxRunConfig(client=PurpleSandboxClient(gateway)))`.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`, before a session
            starts.

    The manifest's root is the gateway's workspace, which belongs to its owner: deleting a session
    deletes nothing.
    """

    backend_id = "purple"
    supports_default_options = True

    def __init__(self, gateway: AnyGateway) -> None:
        self._access = WorkspaceAccess(gateway, client=CLIENT)

    async def create(
        self, *, snapshot: SnapshotSpec | SnapshotBase | None = None,
        manifest: Manifest | None = None, options: PurpleSandboxOptions | None = None,
    ) -> SandboxSession:  # fmt: skip
        """As the base class. Raises `ValueError`: the manifest names another root."""
        manifest = manifest if manifest is not None else Manifest()
        root = self._access.root
        if manifest.root not in (root, Manifest.model_fields["root"].default):
            raise ValueError(f"the manifest's root is {manifest.root}; the workspace is {root}")
        manifest = manifest.model_copy(update={"root": root}, deep=True)
        self._validate_manifest_for_create(manifest)
        session_id = uuid.uuid4()
        state = PurpleSandboxState(
            session_id=session_id, manifest=manifest,
            snapshot=resolve_snapshot(snapshot, str(session_id)),
        )  # fmt: skip
        return self._wrap_session(PurpleSandboxSession(self._access, state))

    async def delete(self, session: SandboxSession) -> SandboxSession:
        """As the base class: nothing is left to delete."""
        return session

    async def resume(self, state: SandboxSessionState) -> SandboxSession:
        """As the base class. Raises `ValueError`: the session was in another workspace."""
        if not isinstance(state, PurpleSandboxState):
            raise TypeError("this session is not Purple's")
        if state.manifest.root != self._access.root:
            raise ValueError(f"this session is of workspace {state.manifest.root}")
        session = PurpleSandboxSession(self._access, state)
        session._set_start_state_preserved(True)
        return self._wrap_session(session)

    def deserialize_session_state(self, payload: dict[str, object]) -> SandboxSessionState:
        """As the base class."""
        return self._deserialize_session_state_payload(payload, PurpleSandboxState)


def _refuse_user(user: str | User | None) -> None:
    if user is not None:
        raise ValueError("a Purple sandbox has one user")
