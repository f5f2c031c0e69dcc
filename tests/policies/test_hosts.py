"""Names, addresses, ports, methods and paths, as a table: what is let through and what is not."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from typing import Any

import pytest
from pydantic import ValidationError

from purplebox.policies.addresses import literal_address, parse_range, special_class
from purplebox.policies.hosts import Hosts, Why, canonical_name, canonical_path, host_pattern
from purplebox.policies.model import Network


def hosts(*allow: dict[str, Any], deny: tuple[dict[str, Any], ...] = ()) -> Hosts:
    return Hosts(
        Network.model_validate_json(json.dumps({"isolated": False, "allow": allow, "deny": deny}))
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("ｅxample.com", "example.com"),  # a full-width letter is the letter
        ("a_b.s3.example", "a_b.s3.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_a_name_has_one_spelling(text: str, name: str) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", "example.com..", "evil.test\0.example.com", "a%00.example.com",
        "a b.example", "a\r\n.example", "user@example.com", "example.com:80", "example.com/",
        "-a.example", "a-.example", "a" * 64 + ".example", ".".join(["a" * 60] * 5), "a。。b",
        "127.0.0.1", "127.1", "0x7f000001", "2130706433", "a.0x7f", "1.2.3.4.5", "*.example",
        "\u202eexample.com",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        canonical_name(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("127.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("0X7F.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"), ("0177.0.0.01", "127.0.0.1"), ("127.0.0.1.", "127.0.0.1"),
        ("0", "0.0.0.0"), ("0x", "0.0.0.0"), ("[::1]", "::1"), ("::1", "::1"),
        ("[0:0::0:1]", "::1"), ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
        ("[::ffff:7f00:1]", "::ffff:7f00:1"), ("0xa9fea9fe", "169.254.169.254"),
    ],
)  # fmt: skip
def test_a_literal_in_any_spelling_is_an_address(text: str, address: str) -> None:
    assert literal_address(text) == ip_address(address)


@pytest.mark.parametrize("text", ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "08.1.1.1", "0x1g.1", "a.1",
                                  "[::1", "[fe80::1%eth0]", "fe80::1%1", "4294967296", "1..1"])  # fmt: skip
def test_what_looks_like_an_address_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        literal_address(text)


@pytest.mark.parametrize("text", ["example.com", "1.example", "0x7f.example", "a1"])
def test_a_name_is_no_literal(text: str) -> None:
    assert literal_address(text) is None


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"), ("127.255.255.255", "loopback"), ("::1", "loopback"),
        ("0.0.0.0", "unspecified"), ("::", "unspecified"), ("10.0.0.1", "private"),
        ("172.16.0.1", "private"), ("172.31.255.255", "private"), ("192.168.1.1", "private"),
        ("fc00::1", "private"), ("fdff::1", "private"), ("fec0::1", "private"),
        ("169.254.169.254", "metadata"), ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"), ("168.63.129.16", "metadata"), ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"), ("100.64.0.1", "shared"), ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"), ("240.0.0.1", "reserved"), ("ff02::1", "multicast"),
        ("::ffff:8.8.8.8", "IPv4-mapped"), ("::ffff:127.0.0.1", "IPv4-mapped"),
        ("::127.0.0.1", "IPv4-compatible"), ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b:1::1", "NAT64"), ("2002:7f00:1::", "6to4"), ("2001:0:1::1", "Teredo"),
        ("198.18.0.1", "benchmarking"), ("203.0.113.5", "documentation"),
        ("2001:db8::1", "documentation"), ("4000::1", "reserved"),
        ("8.8.8.8", ""), ("172.32.0.1", ""), ("2606:4700::1", ""), ("2a00:1450::1", ""),
    ],
)  # fmt: skip
def test_addresses_have_classes(address: str, kind: str) -> None:
    assert special_class(ip_address(address)) == kind


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("example.com", "example.com", True),
        ("Example.COM.", "example.com", True),
        ("example.com", "a.example.com", False),
        ("example.com", "notexample.com", False),
        ("example.com", "exampleXcom", False),
        ("example.com", "example.com.evil.test", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "aexample.com", False),
        ("**.example.com", "a.example.com", True),
        ("**.example.com", "a.b.example.com", True),
        ("**.example.com", "example.com", False),
        ("**", "anything.example", True),
        ("bücher.example", "xn--bcher-kva.example", True),
    ],
)
def test_patterns(pattern: str, name: str, allowed: bool) -> None:
    verdict = hosts({"host": pattern}).decide_name(name, 443)
    assert verdict.allowed is allowed
    assert verdict.reason is (Why.NONE if allowed else Why.HOST_NOT_ALLOWED)
    assert verdict.rule == ("network.allow[0]" if allowed else "")


@pytest.mark.parametrize("pattern", ["*", "a*.example", "*.*.example", "ex*mple.com", "a b", "***.x",
                                     "10.0.0.1/8", "0x7f.1", "*.1.2.3.4", "a@b"])  # fmt: skip
def test_a_pattern_that_means_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"network\.allow\[0\]"):
        hosts({"host": pattern})


@pytest.mark.parametrize("rule", [{"host": "a.example", "ports": []}, {"host": "a.example", "ports": None},
                                  {"host": "a.example", "methods": []}, {"host": ""}, {"host": "a.example", "ports": [0]},
                                  {"host": "a.example", "paths": None}, {"host": "a.example", "ports": [70000]}])  # fmt: skip
def test_an_empty_list_or_null_is_an_error_and_never_everything(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Network.model_validate_json(json.dumps({"isolated": False, "allow": [rule]}))


def test_nothing_allowed_is_nothing_allowed() -> None:
    assert not hosts().decide_name("example.com", 443).allowed
    assert not hosts().decide_address(ip_address("8.8.8.8"), 443).allowed
    with pytest.raises(ValidationError):
        Network.model_validate_json(json.dumps({"isolated": False, "allow": None}))


def test_ports_default_to_the_web_and_a_deny_without_ports_means_all() -> None:
    rules = hosts({"host": "**.example"}, {"host": "db.test", "ports": [5432]},
                  deny=({"host": "no.example"}, {"host": "part.example", "ports": [80]}))  # fmt: skip
    decided = {
        (name, port): rules.decide_name(name, port).reason
        for name, port in (
            ("a.example", 80), ("a.example", 443), ("a.example", 22), ("db.test", 5432),
            ("db.test", 443), ("no.example", 443), ("no.example", None), ("part.example", 80),
            ("part.example", 443), ("part.example", None), ("a.example", None),
        )
    }  # fmt: skip
    assert decided == {
        ("a.example", 80): Why.NONE, ("a.example", 443): Why.NONE,
        ("a.example", 22): Why.PORT_NOT_ALLOWED, ("db.test", 5432): Why.NONE,
        ("db.test", 443): Why.PORT_NOT_ALLOWED, ("no.example", 443): Why.HOST_DENIED,
        ("no.example", None): Why.HOST_DENIED, ("part.example", 80): Why.HOST_DENIED,
        ("part.example", 443): Why.NONE, ("part.example", None): Why.NONE,
        ("a.example", None): Why.NONE,
    }  # fmt: skip


def test_deny_goes_before_allow_and_says_its_rule() -> None:
    rules = hosts({"host": "**.wikipedia.org"}, deny=({"host": "upload.wikipedia.org"},))
    verdict = rules.decide_name("upload.wikipedia.org", 443)
    assert (verdict.reason, verdict.rule) == (Why.HOST_DENIED, "network.deny[0]")
    assert "network.deny[0]" in verdict.text
    assert rules.decide_name("en.wikipedia.org", 443).allowed


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1",
                                     "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"])  # fmt: skip
def test_a_name_leads_to_special_addresses_only_where_the_policy_names_them(address: str) -> None:
    found = ip_address(address)
    plain = hosts({"host": "a.example"})
    verdict = plain.decide_address(found, 443, name="a.example")
    assert (verdict.allowed, verdict.reason) == (False, Why.ADDRESS_NOT_ALLOWED)
    pinned = hosts({"host": "a.example", "addresses": [address]})
    assert pinned.decide_address(found, 443, name="a.example").allowed
    assert not pinned.decide_address(found, 443).allowed  # the name, not the address
    named = hosts({"host": "a.example"}, {"host": address, "ports": [443]})
    assert named.decide_address(found, 443, name="a.example").allowed
    assert named.decide_address(found, 443).allowed
    assert not named.decide_address(found, 80, name="a.example").allowed
    other = hosts({"host": "a.example"}, {"host": "b.example", "addresses": [address]})
    assert not other.decide_address(found, 443, name="a.example").allowed


def test_addresses_pin_a_name_also_to_public_ones() -> None:
    rules = hosts({"host": "a.example", "addresses": ["8.8.8.0/24"]})
    assert rules.decide_address(ip_address("8.8.8.8"), 443, name="a.example").allowed
    assert not rules.decide_address(ip_address("9.9.9.9"), 443, name="a.example").allowed


def test_the_hosts_own_public_address_is_refused_unless_named() -> None:
    own = ip_address("8.8.8.8")
    rules = hosts({"host": "a.example"})
    assert rules.decide_address(own, 443, name="a.example").allowed
    assert not rules.decide_address(own, 443, name="a.example", own=True).allowed


def test_a_literal_needs_a_rule_of_addresses_and_a_denied_range_holds_for_names() -> None:
    rules = hosts({"host": "**"}, {"host": "10.0.0.0/8", "ports": [22]},
                  deny=({"host": "10.9.0.0/16"}, {"host": "8.8.4.4"}))  # fmt: skip
    public = ip_address("8.8.8.8")
    assert rules.decide_address(public, 443).reason is Why.HOST_NOT_ALLOWED
    assert rules.decide_address(ip_address("10.1.1.1"), 22).allowed
    assert rules.decide_address(ip_address("10.1.1.1"), 23).reason is Why.PORT_NOT_ALLOWED
    assert rules.decide_address(ip_address("10.9.1.1"), 22).reason is Why.HOST_DENIED
    assert (
        rules.decide_address(ip_address("8.8.4.4"), 443, name="dns.example").reason
        is Why.HOST_DENIED
    )
    assert rules.decide_address(public, 443, name="dns.example").allowed


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.1", "2001:db8::/32", "::1"])
def test_ranges(text: str) -> None:
    assert parse_range(text) is not None
    assert parse_range("example.com") is None


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"), ("/a/b", "/a/b"), ("/a/b?x=../y", "/a/b"), ("/%61/b%2e", "/a/b."),
        ("/a%20b", "/a%20b"), ("/a%c3%a9", "/a%C3%A9"), ("/a/", "/a/"), ("/.well-known/x", "/.well-known/x"),
    ],
)  # fmt: skip
def test_a_path_has_one_spelling(target: str, path: str) -> None:
    assert canonical_path(target) == path


@pytest.mark.parametrize("target", ["", "a", "/a/../b", "/a/./b", "/a/..", "/%2e%2e/b", "/a/%2e%2E", "/a//b", "//b",
                                    "/a%2fb", "/a%5cb", "/a\\b", "/a%00b", "/a%zz", "/a%", "/a b\n", "/é", "/a%0d%0ab"])  # fmt: skip
def test_a_path_that_servers_may_read_in_two_ways_is_refused(target: str) -> None:
    with pytest.raises(ValueError):
        canonical_path(target)


def test_requests_are_decided_by_method_and_path() -> None:
    rules = hosts(
        {"host": "api.test", "methods": ["GET"], "paths": ["/repos/**", "/users/*/keys"]},
        {"host": "api.test", "methods": ["POST"], "paths": ["/search"]},
        {"host": "free.test"},
        deny=({"host": "api.test", "paths": ["/repos/secret/**"]},),
    )
    decided = [
        (m, p, rules.decide_request(m, "api.test", p).reason)
        for m, p in (
            ("GET", "/repos"), ("GET", "/repos/a/b?x=1"), ("POST", "/repos/a"), ("get", "/repos/a"),
            ("GET", "/reposx"), ("GET", "/users/me/keys"), ("GET", "/users/a/b/keys"),
            ("POST", "/search"), ("GET", "/search"), ("GET", "/repos/secret/x"),
            ("GET", "/repos/%73ecret/x"), ("GET", "/repos/a/../secret/x"), ("GET", "/x"),
        )
    ]  # fmt: skip
    ok, no, denied, bad = Why.NONE, Why.REQUEST_NOT_ALLOWED, Why.HOST_DENIED, Why.REQUEST_INVALID
    assert [reason for _, _, reason in decided] == [
        ok, ok, no, no, no, ok, no, ok, no, denied, denied, bad, no,
    ]  # fmt: skip
    assert rules.decide_request("DELETE", "free.test", "/a/../b").allowed  # no rule reads its path
    assert rules.decide_request("GET", "api.test", "/repos", port=80).allowed
    assert rules.decide_request("GET", "api.test", "/repos", port=81).reason is Why.PORT_NOT_ALLOWED
    assert rules.decide_request("GET", "other.test", "/").reason is Why.HOST_NOT_ALLOWED
    # The connection may be made; the denied path is found when the request is read.
    assert rules.decide_name("api.test", 443).allowed
    assert rules.reads_requests("api.test", 443) and not rules.reads_requests("free.test", 443)


def test_a_refusal_says_what_to_ask_for() -> None:
    rules = hosts({"host": "a.example"})
    assert "{host: 'b.example', ports: [443]}" in rules.decide_name("b.example", 443).text
    assert "port 22" in rules.decide_name("a.example", 22).text
    text = rules.decide_address(ip_address("10.0.0.1"), 443, name="a.example").text
    assert "10.0.0.1" in text and "network.allow[0]" in text


@pytest.mark.parametrize(
    ("host", "instead"),
    [
        ("https://pypi.org/", "write pypi.org, and ports: [443]"),
        ("pypi.org:443", "write pypi.org, and ports: [443]"),
        ("*", "**.NAME (any depth) or ** (any)"),
        ("pypi.*", "**.NAME (any depth) or ** (any)"),
        ("pyp*.org", "**.NAME (any depth) or ** (any)"),
        (".pypi.org", "write **.pypi.org for all names below it, or pypi.org"),
        ("pypi.org/simple", 'write pypi.org, and paths: ["/simple", "/simple/**"] with tls: inspect'),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.1:80", "write 10.0.0.1, and ports: [80]"),
        ("127.1", "write the address as 127.0.0.1"),
    ],
)  # fmt: skip
def test_a_pattern_that_means_nothing_says_what_to_write(host: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(instead)):
        hosts({"host": host})
    with pytest.raises(ValueError, match=re.escape(instead)):
        host_pattern(host)
