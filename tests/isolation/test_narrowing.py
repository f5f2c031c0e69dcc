"""A file operation keeps only its grant: each denial beside the same call with all of the policy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from purplebox.isolation import Engine, OperationError
from purplebox.isolation.seccomp import compile_operation_filter
from purplebox.policies import Grant, Policy, load_policy

T = TypeVar("T")
BASE = load_policy("base")


def in_engine(workspace: Path, body: Callable[[Engine], Awaitable[T]], policy: Policy = BASE) -> T:
    async def go() -> T:
        async with Engine(policy, workspace) as engine:
            return await body(engine)

    return asyncio.run(go())


def call(workspace: Path, operation: str, grant: Grant | None, **arguments: Any) -> Any:
    async def body(engine: Engine) -> Any:
        try:
            return (await engine.call(operation, arguments, grant=grant)).value
        except OperationError as error:
            return error.code

    return in_engine(workspace, body)


def read(*paths: Path) -> Grant:
    return Grant(read=tuple(map(str, paths)))


def write(*paths: Path) -> Grant:
    return Grant(write=tuple(map(str, paths)))


@pytest.fixture
def tree(workspace: Path) -> Path:
    for name in ("a/one", "a/two", "b/three"):
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_text(name)
    return workspace


def test_reading_keeps_the_file_alone(tree: Path) -> None:
    one, two = tree / "a/one", tree / "a/two"
    assert call(tree, "read_file", read(one), path="a/one")["content"] == "a/one"
    assert call(tree, "read_file", read(one), path="a/two") == "EACCES"
    assert call(tree, "read_file", read(two), path="a/two")["content"] == "a/two"
    assert call(tree, "list_directory", read(one), path="a") == "EACCES"
    assert len(call(tree, "list_directory", read(tree / "a"), path="a")["entries"]) == 2
    assert call(tree, "write_file", read(tree), path="a/one", content="x") == "EACCES"
    assert call(tree, "write_file", None, path="a/one", content="x")["bytes_written"] == 1


def test_searching_follows_no_link_out_of_its_directory(tree: Path) -> None:
    (tree / "a/link").symlink_to("../b/three")

    def found(grant: Grant | None) -> list[str]:
        result = call(tree, "search_text", grant, pattern="three", path="a")
        return [match["path"] for match in result["matches"]]

    assert found(None) == ["a/link"]
    assert found(read(tree / "a")) == []


def test_writing_keeps_the_files_directory(tree: Path) -> None:
    one, new = tree / "a/one", tree / "new/dir/file"
    assert call(tree, "write_file", write(one), path="a/one", content="1")["bytes_written"] == 1
    assert call(tree, "edit_file", write(one), path="a/one", old_text="1", new_text="2")
    assert one.read_text() == "2"
    assert call(tree, "edit_file", write(one), path="a/two", old_text="a", new_text="2") == "EACCES"
    assert call(tree, "write_file", write(one), path="b/x", content="1") == "EACCES"
    assert call(tree, "read_file", write(one), path="b/three") == "EACCES"
    assert call(tree, "write_file", write(new), path="new/dir/file", content="1")["created"]
    assert not (tree / "b/x").exists()


def test_moving_and_deleting_keep_what_they_name(tree: Path) -> None:
    source, target = tree / "a", tree / "b/a"
    moved = {"source": "a", "destination": "b/a"}
    assert call(tree, "move", write(tree / "b/three", target), **moved) == "EACCES"
    assert call(tree, "move", write(source, target), **moved)["destination"] == "b/a"
    assert (target / "one").read_text() == "a/one"
    assert call(tree, "delete", write(tree / "b/a/one"), path="b/three") == "EACCES"
    assert call(tree, "delete", write(target), path="b/a", recursive=True)["kind"] == "directory"
    (tree / "link").symlink_to("b/three")
    assert call(tree, "delete", write(tree / "link"), path="link")["kind"] == "symlink"
    assert (tree / "b/three").exists()


def test_moving_onto_a_link_replaces_it(tree: Path) -> None:
    (tree / "link").symlink_to("b")
    grant = write(tree / "a/one", tree / "link")
    moved = {"source": "a/one", "destination": "link", "overwrite": True}
    assert call(tree, "move", grant, **moved) == {"source": "a/one", "destination": "link"}
    assert ((tree / "link").read_text(), sorted(os.listdir(tree / "b"))) == ("a/one", ["three"])
    assert call(tree, "move", None, source="a/two", destination="b", overwrite=True) == "EISDIR"
    assert call(tree, "move", None, source="a/two", destination="b/two") != "EISDIR"


def test_a_link_in_the_way_of_a_grant_is_refused(tree: Path) -> None:
    (tree / "link").symlink_to("b/three")
    (tree / "dir").symlink_to("b")
    for path in ("link", "dir/three"):
        assert call(tree, "read_file", read(tree / path), path=path) == "ELOOP"
        assert call(tree, "read_file", None, path=path)["content"] == "b/three"
        assert call(tree, "write_file", write(tree / path), path=path, content="x") == "ELOOP"
    assert (tree / "b/three").read_text() == "b/three"


def test_a_path_is_followed_as_far_as_the_view_shows(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/on").symlink_to("/etc/shadow")
    (tree / "out").symlink_to(tmp_path / "outside/on")
    (tree / "dir").symlink_to("b")
    (tree / "loop").symlink_to("loop")
    (tree / "hidden").symlink_to("b")

    async def body(engine: Engine) -> list[str]:
        return [
            engine.view.follow(str(tree / "dir/three")),
            engine.view.follow(str(tree / "dir"), last=False),
            engine.view.follow(str(tree / "dir/three"), last=False),
            engine.view.follow(str(tree / "out")),
            engine.view.follow(str(tree / "loop")),
            engine.view.follow(str(tree / "none/x")),
        ]

    assert in_engine(tree, body) == [
        f"{tree}/b/three", f"{tree}/dir", f"{tree}/b/three", f"{tmp_path}/outside/on",
        f"{tree}/loop", f"{tree}/none/x",
    ]  # fmt: skip


def test_links_in_what_a_policy_hides_are_not_looked_at(tree: Path) -> None:
    (tree / "b/link").symlink_to("../a/one")

    def follow(policy: Policy) -> str:
        async def body(engine: Engine) -> str:
            return engine.view.follow(str(tree / "b/link"))

        return in_engine(tree, body, policy)

    files = BASE.filesystem.model_copy(update={"hide": ("b",)})
    assert follow(BASE) == f"{tree}/a/one"
    assert follow(BASE.model_copy(update={"filesystem": files})) == f"{tree}/b/link"


PROBE = """
import base64, ctypes, errno, os, socket, sys
filt = base64.b64decode(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
class F(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
buffer = ctypes.create_string_buffer(filt, len(filt))
program = F(len(filt) // 8, ctypes.addressof(buffer))
if filt:
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
for work in (lambda: socket.socket().close(), lambda: os.mkdir("made"), os.fork, lambda: os.kill(os.getpid(), 0)):
    try:
        if work() == 0:
            os._exit(0)
        print("ok")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (b"", "ok ok ok ok"),
        (compile_operation_filter(writes=False, connects=False), "EPERM EPERM EPERM EPERM"),
        (compile_operation_filter(writes=True, connects=False), "EPERM ok EPERM EPERM"),
        (compile_operation_filter(writes=False, connects=True), "ok EPERM EPERM EPERM"),
    ],
)
def test_the_second_filter_allows_what_the_operation_needs(
    workspace: Path, filter: bytes, expected: str
) -> None:
    import base64

    async def body(engine: Engine) -> bytes:
        argv = ["python3", "-c", PROBE, base64.b64encode(filter).decode()]
        return (await engine.run(argv)).stdout

    assert in_engine(workspace, body).decode().split() == expected.split()
    assert os.path.isdir(workspace / "made") == (expected.split()[1] == "ok")
