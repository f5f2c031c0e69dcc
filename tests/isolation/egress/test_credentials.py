"""Where a secret comes from, where it goes, and where it must not."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from purplebox.isolation import SetupError
from purplebox.isolation.egress.credentials import Cover, Search, Secret, Vault, matches, open_vault
from purplebox.policies.model import Credential

VALUE = "s3cr3t-value-that-nobody-sees"


def credential(**fields: str) -> Credential:
    base = {
        "host": "api.test", "header": "Authorization", "value": "Bearer ${secret:TOKEN}",
        "placeholder_env": "TOKEN",
    }  # fmt: skip
    return Credential.model_validate({**base, **fields})


def vault(**fields: str) -> Vault:
    return open_vault([credential(**fields)], "inspect", {"TOKEN": VALUE})


def only(found: Vault) -> Secret:
    (secret,) = found.of_host("api.test")
    return secret


def test_pass_mode_with_credentials_is_an_error_that_says_so() -> None:
    with pytest.raises(SetupError, match="tls: inspect"):
        open_vault([credential()], "pass", {"TOKEN": VALUE})
    assert not open_vault([], "pass", {})


def test_secret_from_a_file_and_from_a_command(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(VALUE + "\n")
    for source in (f"${{file:{file}}}", f"${{command:cat {file}}}"):
        assert only(vault(value="Bearer " + source)).whole == f"Bearer {VALUE}".encode()


@pytest.mark.parametrize(
    "value",
    ["${secret:MISSING}", "${file:/nowhere}", "${command:false}", "${command:/nowhere}",
     "${command:sh -c 'echo first-line; echo rest'}", "plain", "${secret:TOKEN}${secret:TOKEN}"],
)  # fmt: skip
def test_a_secret_that_cannot_be_had_names_its_entry(value: str) -> None:
    with pytest.raises(SetupError, match=r"network.credentials\[0\] \(TOKEN\)") as found:
        vault(value=value)
    assert "first-line" not in str(found.value).replace(value[10:-1], "")


def test_nothing_shows_the_secret() -> None:
    found = vault()
    assert VALUE not in repr(found.of_host("api.test")) + str(found.environment)


def test_header_is_set_replaced_or_filled_in() -> None:
    secret = only(vault())
    placeholder = secret.placeholder
    whole = f"Bearer {VALUE}".encode()
    assert secret.in_header(None) == whole
    assert secret.in_header(b"token " + placeholder) == b"token " + VALUE.encode()
    assert secret.in_header(b"Bearer somebody-elses") == whole
    basic = b"Basic " + base64.b64encode(b"user:" + placeholder)
    assert base64.b64decode(secret.in_header(basic)[6:]) == b"user:" + VALUE.encode()


def test_basic_pair_is_encoded() -> None:
    secret = only(vault(value="Basic user:${secret:TOKEN}"))
    assert base64.b64decode(secret.whole[6:]) == f"user:{VALUE}".encode()


def test_query_parameter_is_set_once() -> None:
    found = open_vault(
        [Credential(host="api.test", query="key", value="${secret:TOKEN}", placeholder_env="T")],
        "inspect",
        {"TOKEN": "a&b=c"},
    )
    secret = only(found)
    assert secret.in_query("/x") == "/x?key=a%26b%3Dc"
    assert secret.in_query("/x?a=1&key=old&k%65y=old") == "/x?a=1&key=a%26b%3Dc&key=a%26b%3Dc"


def test_a_credential_is_for_a_header_or_for_the_query() -> None:
    for places in ({"header": "a", "query": "b"}, {}):
        with pytest.raises(ValueError, match="one of"):
            Credential(host="h", value="v", placeholder_env="X", **places)


def test_host_patterns() -> None:
    assert matches("api.test", "API.test.") and not matches("api.test", "xapi.test")
    assert matches("*.api.test", "a.api.test") and not matches("*.api.test", "b.a.api.test")
    assert matches("**.api.test", "b.a.api.test") and not matches("**.api.test", "api.test")


@pytest.mark.parametrize("prefix", [b"", b"a", b"ab", b"user:"])
def test_placeholder_is_found_in_every_encoding(prefix: bytes) -> None:
    found = vault()
    text = prefix + only(found).placeholder
    for shape in (
        text, base64.b64encode(text), base64.urlsafe_b64encode(text + b"tail"),
        text.hex().encode(), b"%70" + text[1:] if not prefix else text,
    ):  # fmt: skip
        assert found.misplaced_in_head("/", [(b"x-a", b"v " + shape)], ()) == "TOKEN"
        assert found.misplaced_in_head(f"/{shape.decode()}", [], ()) == "TOKEN"
    assert found.misplaced_in_head("/x?y=z", [(b"x-a", b"v")], ()) == ""


def test_placeholder_is_found_across_pieces() -> None:
    found = vault()
    placeholder = only(found).placeholder
    search = Search(found)
    assert search.feed(b"x" * 100 + placeholder[:10]) == ""
    assert search.feed(placeholder[10:]) == "TOKEN"


def test_secret_is_covered_across_pieces_and_lengths_stay() -> None:
    cover = Cover(vault().of_host("api.test"))
    text = (
        b"before " + VALUE.encode() + b" after " + base64.b64encode(b"u:" + VALUE.encode()) + b"."
    )
    out = b"".join(cover.feed(text[i : i + 3]) for i in range(0, len(text), 3)) + cover.flush()
    assert len(out) == len(text) and out.startswith(b"before *") and b" after " in out
    assert VALUE.encode() not in out and base64.b64encode(VALUE.encode())[4:-8] not in out
    plain = Cover(vault().of_host("api.test"))
    assert plain.feed(b"data: 1\n\n") == b"data: 1\n\n"  # an event stream is not held up
