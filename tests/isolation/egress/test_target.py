"""How a request's target is read, in every way."""

from __future__ import annotations

import pytest

from purplebox.isolation.egress.target import TargetError, readings, split_absolute, split_authority


@pytest.mark.parametrize("path", ["/", "/repos/a/b", "/a-b_c~d/e.txt", "/repos/"])
def test_plain_path_has_one_reading(path: str) -> None:
    assert readings(path + "?q=/../x") == {path}


@pytest.mark.parametrize(
    "target",
    [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
        "/public/%252e%252e/admin",
        "/public/..;/admin",
        "/public/..\\admin",
        "/public/%5c../..%5cadmin",
        "//public/..//admin",
        "/admin;x=1",
        "/./admin",
    ],
)
def test_ways_to_admin_have_admin_among_their_readings(target: str) -> None:
    assert "/admin" in readings(target)


@pytest.mark.parametrize(
    "target",
    ["/a%00", "/a%0d%0ab", "/a%zz", "/a#b", "/a b", "/%c0%ae%c0%ae/admin", "/\u00e9", "a", ""],
)
def test_what_no_server_should_be_asked_is_refused(target: str) -> None:
    with pytest.raises(TargetError):
        readings(target)


def test_scoped_package_names_are_read_both_ways() -> None:
    assert readings("/@scope%2fname") == {"/@scope%2fname", "/@scope/name"}


def test_authorities() -> None:
    assert split_authority("API.test.:8443", 443) == ("api.test", 8443)
    assert split_authority("[::1]:80", 443) == ("::1", 80)
    for text in ("a@b", "a b", "", "a:99999", "a:x", "a/b", "\u0430.test"):
        with pytest.raises(TargetError):
            split_authority(text, 443)


def test_absolute_form() -> None:
    assert split_absolute("http://h:1/p?q") == ("http", "h:1", "/p?q")
    assert split_absolute("http://h?q") == ("http", "h", "/?q")
    with pytest.raises(TargetError):
        split_absolute("ftp://h/")
