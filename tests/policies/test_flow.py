"""Flow rules: what marks a session, and what its calls meet then; each beside what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from purplebox.policies import Place, Policy, PolicyError, Rules, load_policy, narrow
from purplebox.policies.check import check

PLACE = Place(workspace="/srv/ws", home="/home/me")
NOTES: dict[str, Any] = {"after": {"read": "~/notes/**"}, "then": {"network": "ask"}}
OPEN: dict[str, Any] = {"isolated": False, "allow": ({"host": "**.example"},)}


def rules(*flow: dict[str, Any], network: dict[str, Any] | None = None) -> Rules:
    fields = {"name": "p", "flow": flow, "network": network or {}, "tools": {"arguments": {"s__get": {"path": "read", "url": "url"}}}}  # fmt: skip
    return Rules(Policy.model_validate(fields), PLACE)


def marks(compiled: Rules, tool: str, arguments: dict[str, Any], server: str = "", shows: str = "/srv/ws") -> list[str]:  # fmt: skip
    def sees(path: str) -> bool:
        return f"{path}/".startswith(f"{shows}/") or shows.startswith(path.rstrip("/") + "/")

    request = compiled.request(tool=tool, arguments=arguments, server=server)
    return list(compiled.flow.marks(request, narrow(request), sees).values())


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("read_file", {"path": "~/notes/a/b"}, ["read /home/me/notes/a/b"]),
        ("read_file", {"path": "~/notes"}, ["read /home/me/notes"]),
        ("read_file", {"path": "~/notesx"}, []),
        ("edit_file", {"path": "~/notes/a"}, ["read /home/me/notes/a"]),
        ("move", {"source": "~/notes/a", "destination": "b"}, ["read /home/me/notes/a"]),
        ("search_text", {"path": "~", "pattern": "x"}, ["read /home/me"]),
        ("list_directory", {"path": "~"}, []),
        ("search_text", {"path": "/srv", "pattern": "x"}, []),
        ("shell", {"command": "true"}, []),
    ],
)
def test_reading_what_is_private_marks(
    tool: str, arguments: dict[str, Any], said: list[str]
) -> None:
    assert marks(rules(NOTES), tool, arguments) == said


def test_a_command_has_read_what_its_sandbox_shows() -> None:
    compiled = rules(NOTES)
    for shows, marked in (("/home/me", 1), ("/home/me/notes/work", 1), ("/home/me/other", 0)):
        for tool, server in (("shell", ""), ("anything", "s")):
            assert len(marks(compiled, tool, {"command": "true"}, server, shows)) == marked


@pytest.mark.parametrize(
    ("after", "tool", "server", "arguments", "marked"),
    [
        ({"host": "*.example"}, "http_request", "", {"url": "https://A.example/x"}, True),
        ({"host": "*.example"}, "http_request", "", {"url": "https://a.b.example/x"}, False),
        ({"host": "x 10.0.0.0/8"}, "http_request", "", {"url": "http://10.1.2.3/"}, True),
        ({"host": "a.example"}, "shell", "", {"command": "curl x"}, False),  # known when it ends
        ({"host": "a.example"}, "process_start", "", {"command": "curl x"}, True),
        ({"host": "a.example"}, "anything", "s", {}, True),
        ({"host": "a.invalid"}, "anything", "s", {}, False),
        ({"tool": "mail__*"}, "read", "mail", {}, True),
        ({"tool": "mail__*"}, "read", "post", {}, False),
        ({"tool": "x read"}, "read", "post", {}, True),
        ({"read": "x", "tool": "shell"}, "shell", "", {"command": "true"}, True),
    ],
)
def test_taking_in_what_is_untrusted_marks(
    after: dict[str, Any], tool: str, server: str, arguments: dict[str, Any], marked: bool
) -> None:
    after = {k: tuple(v.split()) for k, v in after.items()}
    compiled = rules({"after": after, "then": {"tool": {"x": "deny"}}}, network=OPEN)
    assert bool(marks(compiled, tool, arguments, server, "/nowhere")) == marked


def test_a_command_has_taken_in_what_it_was_connected_with() -> None:
    rule = {"after": {"host": ("**.example", "10.0.0.0/8")}, "then": {"network": "deny"}}
    flow = rules(rule, NOTES, network=OPEN).flow
    assert list(flow.reached(["x.invalid", "192.0.2.1"]).values()) == []
    assert list(flow.reached(["x.invalid", "a.example"]).values()) == [
        "was connected with a.example"
    ]
    assert list(flow.reached(["10.0.0.1"]).values()) == ["was connected with 10.0.0.1"]
    assert len(flow.reached([], all_known=False)) == 1


def verdict(compiled: Rules, tool: str, arguments: dict[str, Any], server: str = "", *, marked: bool = True) -> tuple[str, str] | None:  # fmt: skip
    request = compiled.request(tool=tool, arguments=arguments, server=server)
    keys = {rule.key: "read a note" for rule in compiled.flow._rules} if marked else {}
    found = compiled.flow.verdict(request, narrow(request), keys)
    return None if found is None else (found.effect, found.rule)


@pytest.mark.parametrize(
    ("tool", "arguments", "server", "met"),
    [
        ("http_request", {"url": "https://a.example/"}, "", True),
        ("shell", {"command": "true"}, "", True),
        ("anything", {}, "s", True),
        ("read_file", {"path": "x"}, "", False),
        ("write_file", {"path": "x"}, "", False),
    ],
)
def test_what_reaches_a_network_is_held(
    tool: str, arguments: dict[str, Any], server: str, met: bool
) -> None:
    assert verdict(rules(NOTES, network=OPEN), tool, arguments, server) == (("ask", "flow[0]") if met else None)  # fmt: skip
    assert verdict(rules(NOTES, network=OPEN), tool, arguments, server, marked=False) is None
    assert verdict(rules(NOTES), tool, arguments, server) is None  # isolated: nothing can leave


def test_the_strictest_rule_holds_and_says_why() -> None:
    other = {"after": {"tool": "x"}, "then": {"tool": {"mail__*": "deny"}}, "reason": "mail leaves"}
    compiled = rules(NOTES, other, network=OPEN)
    assert verdict(compiled, "send", {}, "mail") == ("deny", "flow[1]")
    assert verdict(compiled, "send", {}, "post") == ("ask", "flow[0]")
    request = compiled.request(tool="send", arguments={}, server="mail")
    said = compiled.flow.verdict(
        request, narrow(request), {compiled.flow._rules[1].key: "called x"}
    )
    assert said is not None
    assert (said.code, said.reason) == (
        "flow_denied", "this session called x, and this call could send it out; mail leaves",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        ("{after: {}, then: {network: ask}}", "name at least one of `read`"),
        ("{after: {read: x}, then: {}}", "name at least one of `network`"),
        ("{after: {read: x}, then: {network: allow}}", "'ask' or 'deny'"),
        ("{after: {hosts: x}, then: {network: ask}}", "did you mean host?"),
        ("{after: {host: 'a*b'}, then: {network: ask}}", "flow[0].after.host: host 'a*b'"),
    ],
)
def test_a_wrong_flow_rule_is_named(tmp_path: Path, flow: str, words: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\nextends: base\nflow:\n  - {flow}\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(str(path))
    assert words in str(caught.value)
    path.write_text("name: p\nextends: base\nflow: [{after: {read: '~/n/**'}, then: {network: ask}}]\n")  # fmt: skip
    assert load_policy(str(path)).unsupported() == []


def test_check_finds_flow_rules_that_hold_nothing() -> None:
    base: dict[str, Any] = {"name": "p", "resources": {"memory_limit": "1G", "processes": 9}}

    def kinds(**fields: Any) -> list[str]:
        return [finding.kind for finding in check(Policy.model_validate({**base, **fields}))]

    inside = {"after": {"read": "secret/**"}, "then": {"network": "ask"}}
    assert kinds(flow=(NOTES,)) == ["dead"]
    assert kinds(flow=(NOTES,), network=OPEN) == []
    assert kinds(flow=(inside,), network=OPEN) == ["too wide"]
    assert kinds(flow=(inside,), network=OPEN, filesystem={"hide": ("secret/**",)}) == []
