"""What the screens of a result must not change: files that a program fetches, a search's own divider."""

from __future__ import annotations

from pathlib import Path

from purplebox import Gateway
from purplebox.integrations.deepagents import PurpleBackend

COLOURED = b"\x1b[31mred\x1b[0m\n"


def test_a_download_is_each_byte_and_what_the_model_reads_is_screened(workspace: Path) -> None:
    (workspace / "log").write_bytes(COLOURED)
    with Gateway("code-assistant", workspace).sync() as gateway:
        backend = PurpleBackend(gateway)
        (fetched,) = backend.download_files([str(workspace / "log")])
        read = backend.read(str(workspace / "log"))
    assert fetched.content == COLOURED
    assert read.file_data is not None
    assert read.file_data["content"] == "red"


def test_a_search_divides_at_its_own_character_and_keeps_the_files(workspace: Path) -> None:
    (workspace / "a b:1.txt").write_text("one\nneedle \N{SYMBOL FOR NULL} end\n")
    with Gateway("code-assistant", workspace).sync() as gateway:
        found = PurpleBackend(gateway).grep("needle", str(workspace))
    assert found.matches is not None
    (match,) = found.matches
    assert (Path(match["path"]).name, match["line"]) == ("a b:1.txt", 2)
    assert match["text"] == "needle \N{SYMBOL FOR NULL} end"
