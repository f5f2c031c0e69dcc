"""How package runners find their caches in a sandbox; with the real ones: `real/test_servers.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from purplebox.gateway.runners import adapted, remedy
from purplebox.isolation import CommandNotFound, IsolationError, SetupError

HOME = {"HOME": "/home/a"}


def test_npx_gets_a_cache_of_links_and_the_command_stays_whole() -> None:
    argv, env = adapted(["/opt/bin/npx", "-y", "p", "a b"], {"K": "v"}, HOME)
    assert (argv[:2], argv[3:]) == (
        ["/bin/sh", "-c"],
        ["/home/a/.npm", "/opt/bin/npx", "-y", "p", "a b"],
    )
    assert env == {"K": "v"}
    moved, _ = adapted(["npx", "p"], None, {**HOME, "npm_config_cache": "/c"})
    assert moved[3] == "/c"


def test_uvx_is_pointed_at_the_callers_cache_unless_the_configuration_says_otherwise() -> None:
    argv, env = adapted(["uvx", "p"], None, HOME)
    assert argv == ["uvx", "p"]
    assert env["UV_CACHE_DIR"] == "/home/a/.cache/uv"
    assert adapted(["uvx", "p"], {"UV_CACHE_DIR": "/own"}, HOME)[1]["UV_CACHE_DIR"] == "/own"


def test_other_commands_stay_as_they_are() -> None:
    assert adapted(["python3", "npx"], {"K": "v"}, HOME) == (["python3", "npx"], {"K": "v"})


LOCK = SetupError(
    "filesystem.write: ~/.cache/uv/.lock does not exist; create it or remove the grant"
)
NPM = SetupError("filesystem.read: ~/.npm does not exist; create it or remove the grant")


@pytest.mark.parametrize(
    ("argv", "error", "said"),
    [
        (["uvx", "p", "-v"], LOCK, "; fill the cache first, outside: uvx p -v --help"),
        (["/opt/npx", "-y", "p"], NPM, "; fill the cache first, outside: /opt/npx -y p </dev/null"),
        (["python3", "s.py"], LOCK, ""),
        (["uvx", "p"], SetupError("filesystem.read: ~/data does not exist"), ""),
        (["nowhere-at-all"], CommandNotFound("ENOENT", "no"), ""),
        (["/opt/uvx"], CommandNotFound("ENOENT", "no"), ""),
    ],
)
def test_what_to_do_is_said_where_it_is_known(
    argv: list[str], error: IsolationError, said: str
) -> None:
    assert remedy(argv, error, {"PATH": "/nowhere"}) == said


def test_a_program_that_only_the_host_sees_is_named_by_its_path(tmp_path: Path) -> None:
    program = tmp_path / "uvx"
    program.write_text("")
    program.chmod(0o755)
    said = remedy(["uvx", "p"], CommandNotFound("ENOENT", "no"), {"PATH": str(tmp_path)})
    assert f"here it is {program}: grant that" in said
