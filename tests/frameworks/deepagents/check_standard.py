"""LangChain's own suite for sandbox backends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from deepagents.backends.protocol import SandboxBackendProtocol
from langchain_tests.integration_tests.sandboxes import SandboxIntegrationTests

from purplebox import Gateway
from purplebox.integrations.deepagents import PurpleBackend

ROOT = tempfile.TemporaryDirectory(
    prefix="purple-deep-"
)  # the suite asks for it before any fixture


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxBackendProtocol]:
    log = tmp_path_factory.mktemp("log") / "log"
    with ROOT, Gateway(workspace=ROOT.name, audit_log=log).sync() as gateway:
        yield PurpleBackend(gateway)


# The suite lags behind the protocol of deepagents 0.7: matches of a glob are absolute paths of files,
# and a write replaces.
BEHIND = {
    "test_glob", "test_glob_basic_pattern", "test_glob_with_directories",
    "test_glob_hidden_files_explicitly", "test_glob_with_character_class",
    "test_glob_with_question_mark", "test_write_existing_file_fails",
}  # fmt: skip


class TestPurpleBackend(SandboxIntegrationTests):
    pytestmark = pytest.mark.anyio

    @pytest.fixture(autouse=True)
    def behind(self, request: pytest.FixtureRequest) -> None:
        if request.node.name in BEHIND:
            reason = "the suite asks for what the protocol had before deepagents 0.7"
            request.applymarker(pytest.mark.xfail(reason=reason))

    @pytest.fixture
    def sandbox(self, backend: SandboxBackendProtocol) -> SandboxBackendProtocol:
        return backend

    @pytest.fixture
    def sandbox_backend(self, sandbox: SandboxBackendProtocol) -> SandboxBackendProtocol:
        return sandbox

    @property
    def sandbox_root_dir(self) -> str:
        return f"{ROOT.name}/"
