"""The same for text that comes in pieces: progress and log messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..audit.record import REDACTED
from . import detectors

if TYPE_CHECKING:
    from .screen import Screen

_MOST_HELD = 16 << 10
_LEAST_HELD = 4  # so many characters of a credential may show before it is recognised, less one


class Pieces:
    """Screens a text that comes in pieces; what crosses from one into the next is found, too.

    Args:
        screen: By what.
        by_line: Pieces are parts of one text: what follows the last line end waits for the next
            piece, so that a token is seen whole. Otherwise each piece is a message of its own, and
            only an end that could be the start of a known secret moves on into the next.
    """

    def __init__(self, screen: Screen, *, by_line: bool) -> None:
        self._screen = screen
        self._by_line = by_line
        self._held = ""
        self._sent = ""  # the end of what has gone out, where a secret may have begun

    def feed(self, piece: str) -> str:
        """What may go out now."""
        text = self._held + piece
        if not detectors.is_ready() and detectors.is_wanted(text):
            detectors.load_soon()
            self._held = text[-_MOST_HELD:]
            return ""
        known = self._screen.known
        if self._by_line:
            cut = max(text.rfind("\n"), text.rfind("\r")) + 1
            begun = text.rfind("-----BEGIN ", 0, cut)
            if begun >= 0 and text.find("-----END ", begun, cut) < 0:
                cut = begun
            if len(text) - cut > _MOST_HELD:
                cut = len(text)
        else:
            cut = len(text)
        if known:
            cut = max(0, cut - known.begins(self._sent + text[:cut], _LEAST_HELD))
        text, self._held = text[:cut], text[cut:]
        if known:
            text = self._crossing(text)
        return self._screen.text(text) if text else ""

    def _crossing(self, text: str) -> str:
        joined = self._sent + text
        known = self._screen.known
        if self._sent and known.is_in(joined):
            gone = len(self._sent)
            for start, end, _ in reversed(known.find(joined)):
                if end > gone:
                    low = max(start, gone) - gone
                    text = text[:low] + REDACTED + text[end - gone :]
        self._sent = joined[-known.longest :]
        return text


def screened(screen: Screen, send: Callable[[str], None] | None) -> Callable[[str], None] | None:
    """`send` for running output, screened; None stays None."""
    if send is None:
        return None
    pieces = Pieces(screen, by_line=True)

    def feed(text: str) -> None:
        if ready := pieces.feed(text):
            send(ready)

    return feed
