"""What of a workspace is covered and what is read-only in one sandbox; found by guard.py."""

from __future__ import annotations

from typing import NamedTuple


class Marks(NamedTuple):
    """Absolute paths that exist now: to be covered, and to be made read-only.

    `links` are protected names that are symbolic links, with their targets: no mount holds those.
    `ways` are the links by way of which others were found; those are in `protect` where they lead, too.
    """

    hide: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    ways: tuple[tuple[str, str], ...] = ()
