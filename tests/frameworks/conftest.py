"""What the frameworks' own suites expect of a session."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # langchain-tests imports its suites for models, with marks of plugins that only those need.
    for name in ("benchmark", "vcr"):
        config.addinivalue_line("markers", f"{name}: of langchain-tests")
