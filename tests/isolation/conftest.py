"""Fixtures of more than one file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from purplebox.isolation import link
from purplebox.isolation.forkserver import ForkServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """A fork server of the test's own."""
    made = ForkServer()
    monkeypatch.setattr(link, "FORK_SERVER", made)
    yield made
    made.close()
