"""`requestState` that nobody can make, change, give to another or use twice.

It is handed to the client and comes back, so it is the attacker's to choose: what is inside is only a
name of ours, and an HMAC binds that to the principal, to the request and to a time. It begins with the
session's own mark, for a server behind may be a gateway like this one, whose states pass on to it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from typing import Any, TypeGuard

_PREFIX = "purple1."
_key = os.urandom(32)  # of this process: a state does not outlive what it names


def is_ours(state: Any, session: str) -> TypeGuard[str]:
    """Whether `state` claims to be one of this session's."""
    return isinstance(state, str) and state.startswith(f"{_PREFIX}{session}.")


def seal(name: str, session: str, principal: str, request: str, seconds: float) -> str:
    """A state of `session` that names `name` for so long."""
    body = json.dumps([name, int(time.time() + seconds)], separators=(",", ":")).encode()
    return f"{_PREFIX}{session}." + _text(body) + "." + _text(_mac(body, principal, request))


def unseal(state: str, principal: str, request: str) -> str | None:
    """The name in `state`; None when it is forged, expired, or for another principal or request."""
    try:
        body, mac = (base64.urlsafe_b64decode(part + "==") for part in state.split(".")[-2:])
    except (ValueError, binascii.Error):
        return None
    if not hmac.compare_digest(mac, _mac(body, principal, request)):
        return None
    name, expires = json.loads(body)
    return str(name) if expires >= time.time() else None


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _mac(body: bytes, principal: str, request: str) -> bytes:
    bound = json.dumps([body.hex(), principal, request]).encode()
    return hmac.digest(_key, bound, "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
