"""pydantic-ai: `pip install 'purplebox[pydantic-ai]'`.

`PurpleWorkspace` is the environment of a run (a `WorkspaceBackend`): its commands and files in
sandboxes of one gateway. `PurpleToolset` puts another toolset's calls through the gateway: decided,
approved, recorded; its tools run where they ran before.
"""

from __future__ import annotations

import math
import os.path
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai import ModelRetry, RunContext, ToolFailed
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred
from pydantic_ai.tools import AgentDepsT
from pydantic_ai.toolsets import ToolsetTool, WrapperToolset
from pydantic_ai.workspaces import (
    CommandResult,
    FileEntry,
    SupportsCommands,
    SupportsFilesystem,
    SupportsRealpath,
    WorkspaceBackend,
    WorkspaceCommand,
    WorkspaceOutputLimitError,
    WorkspaceRef,
    WorkspaceTimeoutError,
    WorkspaceUnavailableError,
)
from pydantic_core import to_json, to_jsonable_python

from ..gateway.calls import Call, Outcome, Ran, text_result
from ..gateway.reasons import Reason
from .bridge import AnyGateway, Bridge
from .workspace import Entry, WorkspaceAccess

CLIENT = "pydantic-ai"
PROVIDER = "purple"


class PurpleWorkspace(WorkspaceBackend, SupportsCommands, SupportsFilesystem, SupportsRealpath):
    """A gateway's workspace as the environment that an agent works in.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`, before the first use.
        ref: Of an earlier run over the same workspace; another workspace's is unavailable.
        session: Of the client, for rules and the record.

    Each operation is a call: judged, in a sandbox of its own, recorded. What a command starts ends
    with it, also what has detached itself, and /tmp is new each time: pass files in the workspace.
    A refusal is a `PermissionError` that begins with the reason code; of a command, its result with
    exit status 126, as of a shell that may not run it.
    """

    def __init__(
        self, gateway: AnyGateway, ref: WorkspaceRef | None = None, *, session: str = ""
    ) -> None:
        self._access = WorkspaceAccess(gateway, client=CLIENT, session=session)
        self._asked = ref
        self._ref: WorkspaceRef | None = ref

    @property
    def ref(self) -> WorkspaceRef | None:
        """The workspace's directory; None before the first operation."""
        return self._ref

    async def working_dir(self) -> str:
        """The workspace, links followed."""
        return self._root()

    async def run(
        self, command: WorkspaceCommand, *, shell: bool = False,
        env: Mapping[str, str] | None = None, timeout: float | None = None,
    ) -> CommandResult:  # fmt: skip
        """As `SupportsCommands.run`."""
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise ValueError("timeout must be a positive finite number or None")
        if isinstance(command, str) != shell:
            raise TypeError("a string goes with shell=True, a sequence with shell=False")
        self._root()
        line = command if isinstance(command, str) else shlex.join(command)
        try:
            done = await self._access.arun(line, timeout_seconds=timeout, env=env)
        except PermissionError as error:
            return CommandResult(exit_code=126, stdout="", stderr=f"{error.strerror}\n")
        except Exception:
            self._root()  # where the workspace or the gateway is gone, that is what is said
            raise
        self._root()
        if done.timed_out:
            raise WorkspaceTimeoutError(
                "the command was ended at its time limit", stdout=done.stdout, stderr=done.stderr
            )
        if done.truncated:
            limit = self._access.bridge.gateway.policy.resources.output_bytes
            raise WorkspaceOutputLimitError(
                f"the command wrote more than {limit} bytes (rule resources.output_limit); redirect "
                "it to a file and read parts of it", limit=limit, stdout=done.stdout,
                stderr=done.stderr,
            )  # fmt: skip
        notes = "".join(f"[{note}]\n" for note in done.notes)
        return CommandResult(
            exit_code=done.exit_code, stdout=done.stdout, stderr=done.stderr + notes
        )

    async def read_bytes(self, path: str) -> bytes:
        """As `SupportsFilesystem.read_bytes`; at most 32 MiB."""
        return await self._access.aread(self._path(path))

    async def write_bytes(self, path: str, data: bytes) -> None:
        """As `SupportsFilesystem.write_bytes`."""
        await self._access.awrite(self._path(path), data)

    async def stat(self, path: str) -> FileEntry:
        """As `SupportsFilesystem.stat`."""
        return _entry(await self._access.alook(self._path(path)), path)

    async def list_dir(self, path: str) -> Sequence[FileEntry]:
        """As `SupportsFilesystem.list_dir`."""
        entries = await self._access.alist_directory(self._path(path))
        return [_entry(entry, posixpath.join(path, entry.name)) for entry in entries]

    async def make_dir(self, path: str) -> None:
        """As `SupportsFilesystem.make_dir`."""
        await self._access.amake_directory(self._path(path))

    async def remove(self, path: str) -> None:
        """As `SupportsFilesystem.remove`."""
        root, path = self._root(), self._path(path)
        if root == path or root.startswith(path.rstrip("/") + "/"):
            raise ValueError("this is the workspace, or a directory above it")
        await self._access.adelete(path)

    async def exists(self, path: str) -> bool:
        """As `SupportsFilesystem.exists`."""
        try:
            await self._access.alook(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def realpath(self, path: str) -> str:
        """As `SupportsRealpath.realpath`."""
        return await self._access.areal_path(os.path.join(self._root(), path))

    def _root(self) -> str:
        gateway = self._access.bridge.gateway
        try:
            _ = gateway.version
        except RuntimeError as error:
            raise WorkspaceUnavailableError(f"{error}, or it has been closed") from None
        root = self._access.root
        if self._asked is not None and (self._asked.provider, self._asked.id) != (PROVIDER, root):
            raise WorkspaceUnavailableError(
                f"{self._asked.id} is not the workspace of this gateway"
            )
        if not Path(root).is_dir():
            raise WorkspaceUnavailableError(f"workspace {root} is gone")
        self._ref = self._ref or WorkspaceRef(provider=PROVIDER, id=root)
        return root

    def _path(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self._root(), path))


def _entry(entry: Entry, path: str) -> FileEntry:
    size = None if entry.is_directory else entry.size_bytes
    return FileEntry(name=entry.name, path=path, is_dir=entry.is_directory, size=size)


@dataclass
class PurpleToolset(WrapperToolset[AgentDepsT]):
    """Another toolset whose calls are decided, approved and recorded.

    Attributes:
        wrapped: The toolset. Its tools run in this process, or wherever they run: not in a sandbox.
        gateway: Entered by the time of the first call.
        server: What rules and the record call the place that the tools are from.

    A refused call never reaches its tool: the model reads why (`ToolFailed`, the reason code first).
    """

    gateway: AnyGateway
    server: str = CLIENT

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[AgentDepsT],
        tool: ToolsetTool[AgentDepsT],
    ) -> Any:  # fmt: skip
        """As the base class."""
        call = Call(
            tool=name, arguments=to_jsonable_python(tool_args, fallback=repr), server=self.server,
            client=CLIENT, session=ctx.conversation_id or "",
        )  # fmt: skip
        value: Any = None
        error: Exception | None = None
        told: dict[str, Any] = {}

        async def work(judged: Call) -> Ran:
            nonlocal value, error, told
            same = judged.arguments == call.arguments
            arguments = tool_args if same else dict(judged.arguments)
            try:
                value = await super(PurpleToolset, self).call_tool(name, arguments, ctx, tool)
            except Exception as raised:
                error, told = raised, text_result(str(raised), is_error=True)
                waits = isinstance(raised, ApprovalRequired | CallDeferred)
                reason = Reason.CANCELLED if waits else Reason.OPERATION_FAILED
                return Ran(result=told, reason=reason, facts={"error": type(raised).__name__})
            told = text_result(_text(value))
            return Ran(result=told)

        outcome = await Bridge(self.gateway).aaround(call, work)
        return _answer(outcome, told, value, error)


def _answer(outcome: Outcome, told: dict[str, Any], value: Any, error: Exception | None) -> Any:
    """What the tool gave or raised, unless the call was refused or a stage has changed its text."""
    changed = outcome.result != told
    if error is not None:
        if not changed or isinstance(error, ApprovalRequired | CallDeferred):
            raise error
        kind = ModelRetry if isinstance(error, ModelRetry) else ToolFailed
        raise kind(outcome.text) from None
    if outcome.is_error:
        raise ToolFailed(f"[{outcome.reason}] {outcome.text}")
    return outcome.text if changed else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value, fallback=repr).decode()
