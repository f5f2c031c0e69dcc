"""What each session has taken in: the marks by which flow rules judge its later calls.

A mark is set when the call that sets it off goes on, before it runs. A session has at most one mark a
rule, and only sessions with marks are kept. Past `_MOST_SESSIONS` of them the oldest is forgotten as
the session that it is, and its marks hold for all sessions from then on: forgetting lets nothing out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

_MOST_SESSIONS = 10_000
_Key = tuple[str, str]  # client, session


class Flows:
    """The marks of all sessions of one gateway."""

    def __init__(self, most_sessions: int = _MOST_SESSIONS) -> None:
        self._most = most_sessions
        self._marks: OrderedDict[_Key, dict[str, str]] = OrderedDict()
        self._everyone: dict[str, str] = {}

    def of(self, client: str, session: str) -> Mapping[str, str]:
        """The marks of a session: rule's key to what was taken in, in words, by which call."""
        own = self._marks.get((client, session))
        if own is None:
            return self._everyone
        return {**self._everyone, **own}

    def mark(self, client: str, session: str, marks: Mapping[str, str], call_id: str) -> None:
        """Note what a call that goes on sets off; what is marked already stays as it is."""
        if not marks:
            return
        own = self._marks.setdefault((client, session), {})
        for key, what in marks.items():
            own.setdefault(key, f"{what} (call {call_id})")
        self._marks.move_to_end((client, session))
        if len(self._marks) > self._most:
            _, forgotten = self._marks.popitem(last=False)
            for key, what in forgotten.items():
                self._everyone.setdefault(key, f"or another one {what}")
