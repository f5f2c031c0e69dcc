"""What of a policy a call needs, from its arguments."""

from __future__ import annotations

from typing import Any

import pytest

from purplebox.policies import Grant, Place, Policy, Rules, narrow
from purplebox.policies.model import HostRule
from purplebox.policies.request import BUILT_IN
from purplebox.policies.rules import judge

PLACE = Place(workspace="/srv/ws", home="/home/me")


def granted(tool: str, arguments: dict[str, Any], server: str = "", declared: Any = None) -> Grant:
    tools: dict[str, Any] = {"arguments": declared or {}}
    rules = Rules(Policy.model_validate({"name": "p", "tools": tools}), PLACE)
    return narrow(rules.request(tool=tool, arguments=arguments, server=server))


@pytest.mark.parametrize(
    ("tool", "arguments", "grant"),
    [
        ("read_file", {"path": "a/../b"}, Grant(read=("/srv/ws/b",))),
        ("search_text", {"pattern": "x"}, Grant(read=("/srv/ws",))),
        ("write_file", {"path": "b", "content": "/etc"}, Grant(write=("/srv/ws/b",))),
        ("edit_file", {"path": "~/b"}, Grant(write=("/home/me/b",))),
        ("move", {"source": "a", "destination": "/b"}, Grant(write=("/srv/ws/a", "/b"))),
        ("shell", {"command": "cat a", "cwd": "b"}, Grant(scope="policy")),
        ("process_stop", {"id": "1"}, Grant(scope="policy")),
        ("of_a_framework", {"path": "a"}, Grant(scope="policy")),
        (
            "http_request", {"url": "https://API.example./x"},
            Grant(hosts=(HostRule(host="api.example", ports=(443,)),)),
        ),
        (
            "http_request", {"url": "http://[::1]:8000/"},
            Grant(hosts=(HostRule(host="::1", ports=(8000,)),)),
        ),
    ],
)  # fmt: skip
def test_a_built_in_tool_gets_what_its_arguments_name(
    tool: str, arguments: dict[str, Any], grant: Grant
) -> None:
    assert granted(tool, arguments) == grant


def test_a_servers_tool_is_checked_by_what_the_policy_declares() -> None:
    declared = {"s__get": {"from.path": "read", "to": "write", "urls": "url"}}
    arguments: dict[str, Any] = {
        "from": {"path": "a"}, "to": ["b", "c"], "urls": ["http://x.example/"], "note": "/etc/x",
    }  # fmt: skip
    assert granted("get", arguments, "s", declared) == Grant(
        scope="server", read=("/srv/ws/a",), write=("/srv/ws/b", "/srv/ws/c"),
        hosts=(HostRule(host="x.example", ports=(80,)),),
    )  # fmt: skip
    assert granted("get", arguments, "s") == Grant(scope="server")


def test_every_file_tool_is_narrow() -> None:
    for tool, kinds in BUILT_IN.items():
        sample = dict.fromkeys(kinds, "/x") | ({"url": "http://x/"} if "url" in kinds else {})
        wide = "command" in kinds.values() or not kinds
        assert (granted(tool, sample).scope == "policy") == wide, tool


LINKS = {"/srv/ws/link": "/srv/ws/secret/key", "/srv/ws/dir/x": "/srv/ws/secret/x"}
SECRET = {"when": "paths.exists(p, glob(p, 'secret/**'))", "effect": "deny", "reason": "secret"}


@pytest.mark.parametrize(
    ("tool", "arguments", "server", "effect", "seen"),
    [
        ("read_file", {"path": "link"}, "", "deny", {"path": "/srv/ws/secret/key"}),
        ("read_file", {"path": "plain"}, "", "allow", {"path": "/srv/ws/plain"}),
        ("read_file", {"path": "secret/../plain"}, "", "allow", {"path": "/srv/ws/plain"}),
        ("delete", {"path": "link"}, "", "allow", {"path": "/srv/ws/link"}),
        ("move", {"source": "dir/x", "destination": "y"}, "", "allow", None),
        ("other", {"p": "./link"}, "s", "deny", {"p": "./link"}),
        ("declared", {"p": ["plain", "link"]}, "s", "deny", {"p": ["/srv/ws/plain", "/srv/ws/link"]}),
    ],
)  # fmt: skip
def test_a_path_is_judged_where_it_leads(
    tool: str, arguments: dict[str, Any], server: str, effect: str, seen: dict[str, Any] | None
) -> None:
    tools = {"rules": (SECRET,), "arguments": {"declared": {"p": "read"}}}
    rules = Rules(Policy.model_validate({"name": "p", "tools": tools}), PLACE)
    request = rules.request(tool=tool, arguments=arguments, server=server)

    def follow(path: str, last: bool) -> str:
        return LINKS.get(path, path) if last else path

    ran, decision = judge(rules, request, follow)
    assert decision.effect == effect
    if seen is not None:
        assert ran.arguments == seen
    if effect == "deny":
        assert "/srv/ws/link leads to /srv/ws/secret/key" in decision.reason
        assert judge(rules, request, None)[1].effect == "allow"
