"""deepagents: `pip install 'purplebox[deepagents]'`.

`PurpleBackend` is the sandbox of a deep agent (a `SandboxBackendProtocol`): its commands and files in
sandboxes of one gateway.
"""

from __future__ import annotations

import base64
import errno
import posixpath
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from deepagents.backends.protocol import (
    FILE_NOT_FOUND,
    INVALID_PATH,
    IS_DIRECTORY,
    PERMISSION_DENIED,
    DeleteResult,
    EditResult,
    ExecuteResponse,
    FileData,
    FileDownloadResponse,
    FileInfo,
    FileUploadResponse,
    GlobResult,
    GrepResult,
    LsResult,
    ReadResult,
    WriteResult,
)
from deepagents.backends.sandbox import BaseSandbox
from deepagents.backends.utils import check_empty_content, slice_read_response

from ..gateway.calls import Call, Ran, Version
from ..gateway.tools.shell import SHELL
from .bridge import AnyGateway
from .workspace import Entry, Finished, WorkspaceAccess, finished

CLIENT = "deepagents"
_NUL = "\N{SYMBOL FOR NULL}"
_MAX_BINARY_BYTES = 500 * 1024  # what deepagents' own sandboxes hand to a model of a binary file
_CODES = {
    errno.ENOENT: FILE_NOT_FOUND, errno.ENOTDIR: FILE_NOT_FOUND, errno.EISDIR: IS_DIRECTORY,
    errno.EACCES: PERMISSION_DENIED, errno.EPERM: PERMISSION_DENIED, errno.EROFS: PERMISSION_DENIED,
}  # fmt: skip


class _Workspace(BaseSandbox):
    """What a backend and its search scripts have in common: whose workspace it is, and whole files."""

    def __init__(self, access: WorkspaceAccess) -> None:
        self._access = access

    @property
    def id(self) -> str:
        """The workspace's directory."""
        return self._access.root

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """As the protocol."""
        return [self._upload(path, data) for path, data in files]

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """As the protocol."""
        return [await _uploaded(path, data, self._access.awrite) for path, data in files]

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """As the protocol."""
        return [self._download(path) for path in paths]

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """As the protocol."""
        return [await _downloaded(path, self._access.adownload) for path in paths]

    def _upload(self, path: str, data: bytes) -> FileUploadResponse:
        if not posixpath.isabs(path):
            return FileUploadResponse(path=path, error=INVALID_PATH)
        try:
            self._access.write(path, data)
        except OSError as error:
            return FileUploadResponse(path=path, error=_code(error))
        return FileUploadResponse(path=path)

    def _download(self, path: str) -> FileDownloadResponse:
        if not posixpath.isabs(path):
            return FileDownloadResponse(path=path, error=INVALID_PATH)
        try:
            return FileDownloadResponse(path=path, content=self._access.download(path))
        except OSError as error:
            return FileDownloadResponse(path=path, error=_code(error))


class PurpleBackend(_Workspace):
    """A gateway's workspace as the sandbox of a deep agent; every method has its `a…` twin.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`, before the first use.
        session: Of the client, for rules and the record.

    Each operation is a call, judged by the rules of the built-in tool that does the same (`shell`,
    `read_file`, `write_file`, `edit_file`, `list_directory`, `find_files`, `search_text`, `delete`),
    in a sandbox of its own, and recorded. What a command starts ends with it, and /tmp is new each
    time: use the workspace, whose path is the host's. A refusal is an error of the result that begins
    with the reason code; of a command, its output, with exit status 126.
    """

    def __init__(self, gateway: AnyGateway, *, session: str = "") -> None:
        super().__init__(WorkspaceAccess(gateway, client=CLIENT, session=session))

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """As the protocol; `timeout` 0 is the policy's."""
        try:
            return _executed(self._access.run(command, timeout_seconds=timeout or None))
        except PermissionError as error:
            return ExecuteResponse(output=str(error.strerror), exit_code=126)

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """As the protocol."""
        try:
            return _executed(await self._access.arun(command, timeout_seconds=timeout or None))
        except PermissionError as error:
            return ExecuteResponse(output=str(error.strerror), exit_code=126)

    def ls(self, path: str) -> LsResult:
        """As the protocol."""
        try:
            return _listed(path, self._access.list_directory(path))
        except OSError as error:
            return LsResult(error=f"Path '{path}': {_code(error)}")

    async def als(self, path: str) -> LsResult:
        """As the protocol."""
        try:
            return _listed(path, await self._access.alist_directory(path))
        except OSError as error:
            return LsResult(error=f"Path '{path}': {_code(error)}")

    def read(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        """As the protocol."""
        try:
            return _page(file_path, self._access.read(file_path), offset, limit)
        except OSError as error:
            return ReadResult(error=_unread(file_path, error))

    async def aread(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        """As the protocol."""
        try:
            return _page(file_path, await self._access.aread(file_path), offset, limit)
        except OSError as error:
            return ReadResult(error=_unread(file_path, error))

    def write(self, file_path: str, content: str) -> WriteResult:
        """As the protocol."""
        try:
            self._access.write(file_path, content.encode())
        except OSError as error:
            return WriteResult(error=f"Failed to write file '{file_path}': {_code(error)}")
        return WriteResult(path=file_path)

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        """As the protocol."""
        try:
            await self._access.awrite(file_path, content.encode())
        except OSError as error:
            return WriteResult(error=f"Failed to write file '{file_path}': {_code(error)}")
        return WriteResult(path=file_path)

    def edit(
        self, file_path: str, old_string: str, new_string: str, replace_all: bool = False
    ) -> EditResult:
        """As the protocol; line ends as in the file."""
        last: OSError | None = None
        for old, new in _line_ends(old_string, new_string):
            try:
                count = self._access.edit(file_path, old, new, replace_all=replace_all)
            except OSError as error:
                last = error
                if not _is_absent(error):
                    break
            else:
                return EditResult(path=file_path, occurrences=count)
        return EditResult(error=_unedited(file_path, old_string, last))

    async def aedit(
        self, file_path: str, old_string: str, new_string: str, replace_all: bool = False
    ) -> EditResult:
        """As the protocol."""
        last: OSError | None = None
        for old, new in _line_ends(old_string, new_string):
            try:
                count = await self._access.aedit(file_path, old, new, replace_all=replace_all)
            except OSError as error:
                last = error
                if not _is_absent(error):
                    break
            else:
                return EditResult(path=file_path, occurrences=count)
        return EditResult(error=_unedited(file_path, old_string, last))

    def delete(self, file_path: str) -> DeleteResult:
        """As the protocol."""
        try:
            self._access.delete(file_path)
        except OSError as error:
            return DeleteResult(error=_undeleted(file_path, error))
        return DeleteResult(path=file_path)

    async def adelete(self, file_path: str) -> DeleteResult:
        """As the protocol."""
        try:
            await self._access.adelete(file_path)
        except OSError as error:
            return DeleteResult(error=_undeleted(file_path, error))
        return DeleteResult(path=file_path)

    def grep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *,
        max_count: int | None = None,
    ) -> GrepResult:  # fmt: skip
        """As the protocol."""
        return self._searching(pattern, path, glob).grep(pattern, path, glob, max_count=max_count)

    async def agrep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *,
        max_count: int | None = None,
    ) -> GrepResult:  # fmt: skip
        """As the protocol."""
        script = self._searching(pattern, path, glob)
        return await script.agrep(pattern, path, glob, max_count=max_count)

    def glob(self, pattern: str, path: str | None = None) -> GlobResult:
        """As the protocol; without a path, in the workspace."""
        return self._finding(pattern, path).glob(pattern, path or self.id)

    async def aglob(self, pattern: str, path: str | None = None) -> GlobResult:
        """As the protocol."""
        return await self._finding(pattern, path).aglob(pattern, path or self.id)

    def _searching(self, pattern: str, path: str | None, glob: str | None) -> _Script:
        arguments = {
            "pattern": pattern,
            "path": path or self.id,
            **({"glob": glob} if glob else {}),
        }
        return _Script(self._access, "search_text", arguments)

    def _finding(self, pattern: str, path: str | None) -> _Script:
        return _Script(self._access, "find_files", {"pattern": pattern, "path": path or self.id})


class _Script(_Workspace):
    """deepagents' own search scripts, judged and recorded as the tool that does the same."""

    def __init__(self, access: WorkspaceAccess, tool: str, arguments: dict[str, Any]) -> None:
        super().__init__(access)
        self._tool = tool
        self._arguments = arguments

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        try:
            outcome = self._access.bridge.carry(self._call(), _script(command))
            return _answered(finished(outcome))
        except PermissionError as error:
            return ExecuteResponse(output=str(error.strerror), exit_code=126)

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        try:
            outcome = await self._access.bridge.acarry(self._call(), _script(command))
            return _answered(finished(outcome))
        except PermissionError as error:
            return ExecuteResponse(output=str(error.strerror), exit_code=126)

    def _call(self) -> Call:
        access = self._access
        return Call(
            tool=self._tool, arguments=self._arguments, client=access.client, session=access.session
        )


def _script(command: str) -> Callable[[Call, Version], Awaitable[Ran]]:
    """Runs a script whose output NULs divide; screens would take those out, so they go as `_NUL`."""

    async def run(call: Call, version: Version) -> Ran:
        ran = await SHELL.run(replace(call, arguments={"command": command}), version)
        content = ran.result.get("structuredContent")
        if not content or "\0" not in content.get("stdout", ""):
            return ran
        content = {**content, "stdout": content["stdout"].replace("\0", _NUL)}
        return replace(ran, result={**ran.result, "structuredContent": content})

    return run


def _answered(done: Finished) -> ExecuteResponse:
    # The first of a line divides; another is text of the file.
    lines = [line.replace(_NUL, "\0", 1) for line in done.stdout.split("\n")]
    return _executed(replace(done, stdout="\n".join(lines)))


def _executed(done: Finished) -> ExecuteResponse:
    output = "\n".join(part.rstrip("\n") for part in (done.stdout, done.stderr) if part)
    output += "".join(f"\n[{note}]" for note in done.notes)
    return ExecuteResponse(
        output=output, exit_code=124 if done.timed_out else done.exit_code,
        truncated=done.truncated,
    )  # fmt: skip


def _listed(path: str, entries: list[Entry]) -> LsResult:
    found: list[FileInfo] = [
        {"path": posixpath.join(path, entry.name), "is_dir": entry.is_directory}
        for entry in entries
    ]
    return LsResult(entries=found)


def _page(path: str, data: bytes, offset: int, limit: int) -> ReadResult:
    """A file as deepagents' own backends hand it to a model."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if len(data) > _MAX_BINARY_BYTES:
            limit_text = f"Binary file exceeds maximum preview size of {_MAX_BINARY_BYTES} bytes"
            return ReadResult(error=f"File '{path}': {limit_text}")
        encoded = FileData(content=base64.b64encode(data).decode(), encoding="base64")
        return ReadResult(file_data=encoded)
    if empty := check_empty_content(text):
        return ReadResult(file_data=FileData(content=empty, encoding="utf-8"))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    result = slice_read_response(FileData(content=text, encoding="utf-8"), offset, limit)
    if result.file_data is not None:  # a page ends without a line end, as of their sandboxes
        result.file_data["content"] = result.file_data["content"].removesuffix("\n")
    return result


def _line_ends(old: str, new: str) -> list[tuple[str, str]]:
    """The text as given, then with CRLF, then with LF: a read shows LF whatever the file has."""
    lf = (old.replace("\r\n", "\n"), new.replace("\r\n", "\n"))
    crlf = (lf[0].replace("\n", "\r\n"), lf[1].replace("\n", "\r\n"))
    return list(dict.fromkeys([(old, new), crlf, lf]))


def _is_absent(error: OSError) -> bool:
    return error.errno == errno.EINVAL and "is not in" in str(error.strerror)


def _code(error: OSError) -> str:
    """The protocol's code; of a refusal, its text."""
    refusal = str(error.strerror)
    return refusal if refusal.startswith("[") else _CODES.get(error.errno or 0, refusal)


def _unread(path: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"File '{path}' not found"
    return f"File '{path}': {_code(error)}"


def _undeleted(path: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"Error: '{path}' not found"
    return f"Error deleting file '{path}': {_code(error)}"


def _unedited(path: str, old: str, error: OSError | None) -> str:
    assert error is not None
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"Error: File '{path}' not found"
    if _is_absent(error):
        return f"Error: String not found in file: '{old}'"
    if error.errno == errno.EINVAL and "times in" in str(error.strerror):
        return f"Error: String '{old}' appears multiple times. Use replace_all=True to replace all occurrences."
    return f"Error editing file '{path}': {_code(error)}"


async def _uploaded(
    path: str, data: bytes, write: Callable[[str, bytes], Awaitable[None]]
) -> FileUploadResponse:
    if not posixpath.isabs(path):
        return FileUploadResponse(path=path, error=INVALID_PATH)
    try:
        await write(path, data)
    except OSError as error:
        return FileUploadResponse(path=path, error=_code(error))
    return FileUploadResponse(path=path)


async def _downloaded(path: str, read: Callable[[str], Awaitable[bytes]]) -> FileDownloadResponse:
    if not posixpath.isabs(path):
        return FileDownloadResponse(path=path, error=INVALID_PATH)
    try:
        return FileDownloadResponse(path=path, content=await read(path))
    except OSError as error:
        return FileDownloadResponse(path=path, error=_code(error))
