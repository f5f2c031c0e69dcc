"""Finding secrets whose value is known, however they are written. Pure.

The shapes: plain, percent-encoded, hexadecimal, JSON- and HTML-escaped, and inside base64 of something
(three runs, by where the value starts), each also broken by line ends as `base64` and `xxd -p` break
it. What a program may do beyond that (encrypt, reverse, spell) has no end and is not looked for.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from ...policies import Policy

LEAST_CHARACTERS = 8  # a shorter one is found in any text
_LEAST_RUN = 6


def known_secrets(
    policy: Policy, environment: Mapping[str, str], more: Mapping[str, str]
) -> dict[str, str]:
    """Name and value of what a policy hands to its sandbox that must not come back.

    Args:
        policy: Its `environment` is looked at: variables that it passes or sets and whose name
            holds one of `audit.redact`, or "key" or "passwd".
        environment: The gateway's own.
        more: Given to the sandbox besides; by name, too, for not every variable is a secret.
    """
    given = {name: environment.get(name, "") for name in policy.environment.pass_}
    given |= {**policy.environment.set, **more}
    words = (*(word.lower() for word in policy.audit.redact), "key", "passwd", "credential")
    return {
        name: value for name, value in given.items() if any(word in name.lower() for word in words)
    }


def shapes(value: str) -> list[str]:
    """`value` in the spellings that are looked for, longest first."""
    data = value.encode("utf-8", "surrogatepass")
    escaped = json.dumps(value)[1:-1]
    found = {
        value, quote(data, safe=""), quote(data, safe="").lower(), quote(data), quote(data, safe="").replace("%20", "+"),
        "".join(f"%{b:02X}" for b in data), "".join(f"%{b:02x}" for b in data),
        data.hex(), data.hex().upper(), data.hex(" "), data.hex(":"), "".join(f"\\x{b:02x}" for b in data),
        escaped, escaped.replace("/", "\\/"), json.dumps(value, ensure_ascii=False)[1:-1],
        json.dumps(escaped)[1:-1], "".join(f"\\u{ord(c):04x}" for c in value if c < "\U00010000"),
        html.escape(value), "".join(f"&#{ord(c)};" for c in value),
    }  # fmt: skip
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode()
        start = (before * 8 + 5) // 6
        run = encoded[start : (before + len(data)) * 8 // 6]
        if len(run) >= _LEAST_RUN:
            safe = run.translate(str.maketrans("+/", "-_"))
            found |= {run, safe, quote(run, safe="")}
    return sorted(found, key=len, reverse=True)


class Known:
    """Secrets by name.

    Args:
        secrets: Name and value; values shorter than LEAST_CHARACTERS are not looked for.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = {
            name: shapes(value) for name, value in secrets.items() if len(value) >= LEAST_CHARACTERS
        }
        self.longest = max((len(s[0]) for s in self._secrets.values()), default=0)

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def is_in(self, text: str) -> bool:
        """Whether any is in `text`; fast."""
        texts = [text]
        if "\n" in text:
            texts.append(text.translate({10: None, 13: None}) if "\r" in text else text.replace("\n", ""))  # fmt: skip
        return any(s in t for t in texts for found in self._secrets.values() for s in found)

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Where each is: start, end, name; in order, none within another."""
        spans = [
            (match.start(), match.end(), name)
            for name, pattern in self._patterns
            for match in pattern.finditer(text)
        ]
        return merged(spans)

    def begins(self, text: str, least: int) -> int:
        """How many characters at the end of `text` could be the start of one; 0 when under `least`."""
        best = 0
        for found in self._secrets.values():
            for shape in found:
                for length in range(min(len(shape) - 1, len(text)), max(best, least - 1), -1):
                    if text.endswith(shape[:length]):
                        best = length
                        break
        return best

    @cached_property
    def _patterns(self) -> Sequence[tuple[str, re.Pattern[str]]]:
        # A line end may stand between any two characters; made only when `is_in` has said yes.
        return [
            (name, re.compile("|".join("(?:\r?\n)?".join(map(re.escape, s)) for s in found)))
            for name, found in self._secrets.items()
        ]


def merged(spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Spans in order; those that overlap become one, with the name of the first."""
    result: list[tuple[int, int, str]] = []
    for start, end, name in sorted(spans):
        if result and start < result[-1][1]:
            first = result[-1]
            result[-1] = first[0], max(first[1], end), first[2]
        else:
            result.append((start, end, name))
    return result
