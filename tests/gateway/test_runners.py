"""How package runners find their caches in a sandbox; with the real ones: `real/test_servers.py`."""

from __future__ import annotations

from purplebox.gateway.runners import adapted

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
