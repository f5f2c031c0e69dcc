"""One spelling for one thing: keys, paths, URLs; what has no one meaning is refused."""

from __future__ import annotations

import pytest

from purplebox.policies import CanonicalError, Place, parse_json
from purplebox.policies.canonical import canonical_path, canonical_url, check_keys, path_pattern
from purplebox.policies.request import make_request

PLACE = Place(workspace="/srv/ws", home="/home/me", aliases=("/link/ws",))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a.txt", "/srv/ws/a.txt"),
        ("./a//b/../c/.", "/srv/ws/a/c"),
        ("..", "/srv"),
        ("../../../../etc/passwd", "/etc/passwd"),
        ("/etc//passwd/", "/etc/passwd"),
        ("//etc/passwd", "/etc/passwd"),
        ("/", "/"),
        ("~", "/home/me"),
        ("~/notes", "/home/me/notes"),
        ("~other/notes", "/srv/ws/~other/notes"),
        ("/proc/self/root/etc/passwd", "/etc/passwd"),
        ("/proc/thread-self/root/etc", "/etc"),
        ("/proc/1/task/2/root/x", "/x"),
        ("/proc/self/cwd/secret", "/srv/ws/secret"),
        ("/proc/self/cwd/../x", "/srv/x"),
        ("/proc/self/root/proc/self/root/etc", "/etc"),
        ("/proc/self/x/../root/etc", "/etc"),
        ("/proc/self/rootless", "/proc/self/rootless"),
        ("file:///etc/pass%77d", "/etc/passwd"),
        ("FILE://localhost/etc/../x", "/x"),
        ("file:/etc/passwd", "/etc/passwd"),
        ("/link/ws/a", "/srv/ws/a"),
        ("/link/wsx", "/link/wsx"),
        ("name\nwith a line", "/srv/ws/name\nwith a line"),
    ],
)
def test_a_path_has_one_spelling(text: str, path: str) -> None:
    assert canonical_path(text, PLACE) == path
    assert canonical_path(path, PLACE) == path


@pytest.mark.parametrize(
    "text",
    [
        "", "a\0b", "/dev/fd/3", "/proc/self/fd/3/x", "/proc/self/x/../fd/3", "/dev//fd/3", "a" * 5000,
        "file://evil/etc", "file:relative", "file:///a?b", "file:///%00",
    ],
)  # fmt: skip
def test_a_path_without_one_meaning_is_refused(text: str) -> None:
    with pytest.raises(CanonicalError):
        canonical_path(text, PLACE)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("HTTPS://EXAMPLE.com/a/../b", "example.com", 443),
        ("http://example.com.:8080/", "example.com", 8080),
        ("https://user:pw@example.com@evil.org/", "evil.org", 443),
        ("http://0x7f.1/", "127.0.0.1", 80),
        ("http://2130706433/", "127.0.0.1", 80),
        ("http://0177.0.0.1/", "127.0.0.1", 80),
        ("http://[::ffff:127.0.0.1]/", "::ffff:7f00:1", 80),
        ("https://faß.de/", "xn--fa-hia.de", 443),
        ("https://ex%41mple.com/", "example.com", 443),
        ("http://１２７.0.0.1/", "127.0.0.1", 80),
        ("https://xn--e1afmkfd.xn--p1ai/", "xn--e1afmkfd.xn--p1ai", 443),
        ("mailto:a@b", "", 0),
    ],
)
def test_a_url_is_what_browsers_make_of_it(text: str, host: str, port: int) -> None:
    url = canonical_url(text)
    assert (url.host, url.port) == (host, port)
    assert url.userinfo == ("user:pw" in text)


@pytest.mark.parametrize(
    "text",
    [
        "example.com", "https://", "https:evil.com", "https:///evil.com", "https://good.com\\@evil.com/",
        "https://good.com\t.evil.com/", "https://go\nod.com/", "https://a b/", "https://ex%00ample.com/",
        "https://good.com..", "http://[::1", "http://a:99999/", "https://x/" + "a" * 9000,
    ],
)  # fmt: skip
def test_a_url_that_parsers_read_differently_is_refused(text: str) -> None:
    with pytest.raises(CanonicalError):
        canonical_url(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"path": "a", "path": "b"}',
        '{"path": "a", "PATH": "b"}',
        '{"a": {"x": [{"k": 1, "K": 2}]}}',
        '{"stra\\u00dfe": 1, "strasse": 2}',
        '{"pa\\u200bth": "a"}',
        '{"pa\\u202eth": "a"}',
        '{"e\\u0301": 1}',
        '{"\\uff50ath": 1, "path": 2}',
        '{"a": NaN}',
        '{"a\\nb": 1}',
    ],
)
def test_keys_that_two_readers_may_take_differently_are_refused(text: str) -> None:
    with pytest.raises(CanonicalError):
        parse_json(text)


def test_ordinary_keys_pass() -> None:
    value = {"path": "a", "options": [{"é": 1, "naïve": None}], "名前": {"path": 2}}
    check_keys(value)
    assert parse_json('{"é": {"a": 1, "b": [1.5, null]}}') == {"é": {"a": 1, "b": [1.5, None]}}
    with pytest.raises(CanonicalError):
        check_keys({"a": [{"K": 1, "k": 2}]})


def test_what_a_built_in_tool_names_is_known() -> None:
    request = make_request(tool="move", arguments={"source": "a/../b", "destination": "~/x"}, place=PLACE)  # fmt: skip
    assert request.arguments == {"source": "/srv/ws/b", "destination": "/home/me/x"}
    assert [(use.argument, use.kind) for use in request.uses] == [
        ("source", "path"), ("destination", "write"),
    ]  # fmt: skip
    listed = make_request(tool="list_directory", arguments={}, place=PLACE)
    assert listed.arguments == {"path": "/srv/ws"}
    with pytest.raises(CanonicalError, match="path: a path names a file"):
        make_request(tool="read_file", arguments={"path": "/dev/fd/0"}, place=PLACE)


def test_other_tools_are_mapped_by_the_policy_and_guessed_without_a_change() -> None:
    arguments = {
        "target": {"file": "./x/../y"}, "urls": ["HTTP://A.example/../z"], "text": "see /etc",
        "also": "/etc//hosts", "link": "https://B.example",
    }  # fmt: skip
    declared = {"git__*": {"target.file": "read", "urls": "url", "absent": "path"}}
    request = make_request(
        tool="push", server="git", arguments=arguments, place=PLACE,
        declared=declared,  # type: ignore[arg-type]
    )  # fmt: skip
    assert request.arguments == {
        **arguments, "target": {"file": "/srv/ws/y"}, "urls": ["http://a.example/z"]
    }  # fmt: skip
    assert arguments["target"] == {"file": "./x/../y"}
    found = {(use.argument, use.value, use.declared) for use in request.uses}
    assert found == {
        ("target.file", "/srv/ws/y", True), ("urls[0]", "http://a.example/z", True),
        ("also", "/etc/hosts", False), ("link", "https://b.example/", False),
    }  # fmt: skip
    assert [url.host for url in request.urls] == ["a.example", "b.example"]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("~/notes/**", "/home/me/notes/a/b", True),
        ("~/notes/**", "/home/me/notes", True),
        ("~/notes/**", "/home/me/notes2", False),
        ("src/*.py", "/srv/ws/src/a.py", True),
        ("src/*.py", "/srv/ws/src/b/a.py", False),
        ("**/.env", "/srv/ws/x/.env", True),
        ("**/.env", "/srv/ws/x/a.env", False),
        ("/etc/?osts", "/etc/hosts", True),
        ("a[b]", "/srv/ws/a[b]", True),
        ("a/**/z", "/srv/ws/a/z", True),
        ("a/**/z", "/srv/ws/a/b/c/z", True),
        ("/", "/", True),
        ("/**", "/x/y", True),
    ],
)
def test_path_patterns(pattern: str, path: str, matches: bool) -> None:
    assert bool(path_pattern(pattern, PLACE).fullmatch(path)) == matches
