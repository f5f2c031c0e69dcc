"""Secrets of anybody's, found by Kingfisher's rules (`purplebox[secrets]`).

Kingfisher is a library of some 490 maintained rules (at medium confidence) (GitHub, AWS, Slack, private keys, JWT, …) on
Vectorscan: 1 MB takes 7 ms, where `detect-secrets` 1.5 takes 600. It is an extra because it weighs
35 MB, and 50 MB of memory once its rules are loaded. They are compiled at first use and kept in the
user's cache directory: 6 s the first time, 0.6 s after that.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from functools import lru_cache
from typing import Any

# Text without so long a token that has a digit costs no scan, and a gateway that never sees one
# loads no rules.
LEAST_CHARACTERS = 16
_TOKEN = re.compile(rf"[\w+/=.-]{{{LEAST_CHARACTERS},}}")
_DIGIT = re.compile(r"\d")
_making = threading.Lock()
_ready = False


@lru_cache
def is_installed() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("kingfisher_sdk") is not None


def is_ready() -> bool:
    """Whether `find` answers without loading rules first."""
    return _ready or not is_installed()


def is_wanted(text: str) -> bool:
    """Whether `find` has to look at `text` at all."""
    if len(text) < LEAST_CHARACTERS or not is_installed():
        return False
    return any(_DIGIT.search(token[0]) for token in _TOKEN.finditer(text))


def load() -> None:
    """Load the rules; takes up to some seconds, in which other threads run."""
    if is_installed():
        _scanner()


def load_soon() -> None:
    """Have the rules loaded by a thread."""
    if not is_ready() and not _making.locked():
        threading.Thread(target=load, name="purple-detectors", daemon=True).start()


def find(text: str) -> list[tuple[int, int, str]]:
    """Where secrets are: start, end, and the name of the rule. [] without the library.

    May take seconds the first time; safe in several threads.
    """
    if not is_wanted(text):
        return []
    data = text.encode("utf-8", "surrogatepass")
    ascii_only = len(data) == len(text)
    spans: list[tuple[int, int, str]] = []
    for finding in _scanner().scan(data):
        if not finding.visible:  # half of a pair, such as the id of a key: no secret in itself
            continue
        start, end = finding.location["start_offset"], finding.location["end_offset"]
        secret = finding.secret.encode("utf-8", "surrogatepass")
        within = data.find(secret, start, end) if secret else -1
        if within >= 0:
            start, end = within, within + len(secret)
        if not ascii_only:
            before = data[:start].decode("utf-8", "surrogatepass")
            inner = data[start:end].decode("utf-8", "replace")
            start, end = len(before), len(before) + len(inner)
        spans.append((start, end, finding.rule_id.rpartition(".")[2].rpartition("/")[2]))
    return spans


def _scanner() -> Any:
    with _making:
        return _make_scanner()


@lru_cache
def _make_scanner() -> Any:
    global _ready
    from kingfisher_sdk import Rules, Scanner

    scanner = Scanner(Rules(confidence="medium"))
    _ready = True
    return scanner
