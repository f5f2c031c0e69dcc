"""What the time of a directory's last change tells, and where nothing is to be told by it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from purplebox.isolation import libc
from purplebox.isolation.guard import Guard
from purplebox.isolation.unchanged import is_unchanged, stamp


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A directory with a file and a directory, in which nothing has happened for a moment."""
    directory = tmp_path / "settled"
    (directory / "inner").mkdir(parents=True)
    (directory / "file").write_text("x")
    time.sleep(0.15)
    return directory


def restore_times(directory: Path, change: Callable[[], object]) -> None:
    before = directory.stat()
    change()
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert directory.stat().st_mtime_ns == before.st_mtime_ns


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda d: (d / "new").write_text(""),
    "a new directory": lambda d: (d / "new").mkdir(),
    "a new link": lambda d: (d / "new").symlink_to("/usr"),
    "a hard link": lambda d: os.link(d / "file", d / "new"),
    "a name that goes": lambda d: (d / "file").unlink(),
    "a name that comes from elsewhere": lambda d: os.rename(d / "inner", d.parent / "moved"),
    "one that takes another's place": lambda d: os.replace(d / "file", d / "other"),
    "a mode": lambda d: d.chmod(0o711),
    "a time that is set back": lambda d: restore_times(d, (d / "new").mkdir),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_change_shows(settled: Path, change: Callable[[Path], object]) -> None:
    before = stamp([str(settled)])
    assert before is not None
    assert is_unchanged([str(settled)], before)  # the control
    change(settled)
    assert not is_unchanged([str(settled)], before)


def test_what_concerns_no_name_does_not_show(settled: Path) -> None:
    before = stamp([str(settled)])
    assert before is not None
    (settled / "file").write_text("more")
    (settled / "inner" / "new").write_text("")  # that is another directory's
    assert is_unchanged([str(settled)], before)


def test_what_has_just_changed_has_no_stamp(settled: Path) -> None:
    assert stamp([str(settled)]) is not None
    (settled / "new").write_text("")
    assert stamp([str(settled)]) is None  # another change could have the same time
    time.sleep(0.15)
    assert stamp([str(settled)]) is not None


def test_links_files_and_what_is_missing_have_none(settled: Path) -> None:
    (settled.parent / "link").symlink_to(settled)
    for path in (settled.parent / "link", settled / "file", settled / "missing"):
        assert stamp([str(settled), str(path)]) is None


def test_another_directory_at_the_same_place_shows(settled: Path) -> None:
    before = stamp([str(settled)])
    assert before is not None
    os.rename(settled, settled.parent / "old")
    settled.mkdir()
    assert not is_unchanged([str(settled)], before)
    os.rmdir(settled)
    assert not is_unchanged([str(settled)], before)


def test_only_file_systems_that_keep_their_time_are_believed(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert libc.file_system("/proc") == 0x9FA0
    assert stamp(["/proc/self"]) is None

    def fuse(path: str) -> int:
        return 0x65735546  # FUSE_SUPER_MAGIC

    monkeypatch.setattr(libc, "file_system", fuse)
    assert stamp([str(settled)]) is None


PATTERNS = [".vscode", ".git/hooks", ".git/config", ".envrc"]


def test_a_guard_does_not_look_again_where_nothing_changed(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settled / ".git" / "hooks").mkdir(parents=True)
    time.sleep(0.15)
    guard = Guard(str(settled), [".env"], PATTERNS)
    marks = guard.look()
    assert marks.protect == (f"{settled}/.git/hooks",)

    def present(patterns: object, root: str) -> None:
        raise AssertionError("it looks")

    monkeypatch.setattr("purplebox.isolation.guard.Patterns.present", present)
    assert guard.look() is marks
    assert guard.move_aside(marks) == ()
    (settled / ".envrc").write_text("")
    with pytest.raises(AssertionError, match="it looks"):
        guard.look()


@pytest.mark.parametrize(
    "made", [".vscode", ".envrc", ".git/hooks", ".git/config"], ids=lambda name: name[1:]
)
def test_what_a_command_makes_is_found_whenever_it_is_made(settled: Path, made: str) -> None:
    (settled / ".git").mkdir()
    for wait in (0.0, 0.15):
        time.sleep(wait)
        guard = Guard(str(settled), [], PATTERNS)
        before = guard.look()
        assert guard.move_aside(before) == ()
        # By a process of its own, which sets back what times it can, at once.
        program = (
            "import os, sys; path = sys.argv[1]; parent = os.path.dirname(path); s = os.stat(parent); "
            "os.mkdir(path); os.utime(parent, ns=(s.st_atime_ns, s.st_mtime_ns))"
        )
        subprocess.run([sys.executable, "-c", program, settled / made], check=True)
        (said,) = guard.move_aside(before)
        assert said.startswith(f"{made} was moved to ")
        assert not (settled / made).exists()


def test_a_marks_own_directories_count(settled: Path) -> None:
    """A look of another call between must not hide what this one has not seen."""
    time.sleep(0.15)
    guard = Guard(str(settled), [], PATTERNS)
    before = guard.look()
    (settled / ".vscode").mkdir()
    time.sleep(0.15)
    later = guard.look()
    assert later.protect == (f"{settled}/.vscode",)
    assert guard.look() is later
    assert guard.move_aside(later) == ()  # it was there, and read-only, for the later one
    (said,) = guard.move_aside(before)
    assert said.startswith(".vscode was moved to ")
