"""What a project brings is no policy before a person has accepted it, as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from purplebox.policies import (
    PolicyError,
    PolicySource,
    create_policy,
    delete_policy,
    list_policies,
    load_policy,
    read_policy,
    trust,
)  # fmt: skip
from purplebox.policies.amend import approve_always

WIDE = "name: {name}\nextends: {parent}\nfilesystem: {{read: [/usr/share/dict]}}\n"


def bring(project: Path, name: str = "code-assistant", parent: str = "") -> Path:
    path = project / ".purple" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(WIDE.format(name=name, parent=parent or name))
    return path


def accept(name: str, project: Path) -> None:
    trust.accept(read_policy(name, project=project)[1])


def widened(name: str, project: Path) -> bool:
    return "/usr/share/dict" in load_policy(name, project=project).filesystem.read


@pytest.fixture
def store(private_home: Path) -> Path:
    return private_home / "state" / "purple" / "profiles.json"


def test_a_profile_in_the_place_of_the_shipped_one_is_refused_until_accepted(
    workspace: Path,
) -> None:
    path = bring(workspace)
    with pytest.raises(PolicyError, match="nobody has accepted") as caught:
        load_policy("code-assistant", project=workspace)
    assert caught.value.file == str(path)
    for words in ("purple profile accept code-assistant", f"--project {workspace}", "shipped:code-assistant"):  # fmt: skip
        assert words in str(caught.value)
    accept("code-assistant", workspace)
    assert widened("code-assistant", workspace)


def test_what_was_accepted_is_refused_once_it_has_changed(workspace: Path) -> None:
    path = bring(workspace)
    accept("code-assistant", workspace)
    before = path.read_text()
    path.write_text(before + "# more\n")
    with pytest.raises(PolicyError, match="has changed since"):
        load_policy("code-assistant", project=workspace)
    path.write_text(before)
    assert widened("code-assistant", workspace)


def test_what_a_shipped_profile_extends_is_not_the_projects_until_accepted(workspace: Path) -> None:
    path = bring(workspace, "base")
    with pytest.raises(PolicyError, match="nobody has accepted") as caught:
        load_policy("code-assistant", project=workspace)
    assert caught.value.file == str(path)
    accept("code-assistant", workspace)
    assert widened("code-assistant", workspace)


def test_a_path_is_the_persons_word_and_what_it_extends_is_not(
    workspace: Path, tmp_path: Path
) -> None:
    path = bring(workspace, "mine", "strict")
    assert widened(str(path), workspace)
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nextends: mine\n")
    with pytest.raises(PolicyError, match="nobody has accepted"):
        load_policy(str(own), project=workspace)
    accept(str(own), workspace)
    assert widened(str(own), workspace)


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_a_path_that_is_extended_is_accepted_as_well(
    place: str, workspace: Path, tmp_path: Path
) -> None:
    """By a file that was accepted, whatever it names; by a file of the person's, below `.purple/`."""
    inside = place == "inside"
    other = bring(workspace, "other", "strict") if inside else tmp_path / "other.yaml"
    other.write_text(WIDE.format(name="other", parent="strict"))
    first = tmp_path / "first.yaml" if inside else bring(workspace, "first")
    first.write_text(f"name: first\nextends: {other}\n")
    name = str(first) if inside else "first"
    if not inside:
        trust.accept(read_policy("first", project=workspace)[1][:1])
    with pytest.raises(PolicyError, match="nobody has accepted") as caught:
        load_policy(name, project=workspace)
    assert caught.value.file == str(other)
    accept(name, workspace)
    assert widened(name, workspace)
    other.write_text("name: other\n")
    with pytest.raises(PolicyError, match="has changed since"):
        load_policy(name, project=workspace)


def test_the_persons_own_files_need_nothing(private_home: Path, workspace: Path) -> None:
    directory = private_home / "config" / "purple" / "profiles"
    directory.mkdir(parents=True)
    (directory / "mine.yaml").write_text(WIDE.format(name="mine", parent="./other.yaml"))
    other = directory / "other.yaml"
    other.write_text("name: other\nextends: strict\n")
    (directory / "mine.yaml").write_text(WIDE.format(name="mine", parent=other))
    assert widened("mine", workspace)


def test_the_shipped_and_the_users_own_can_be_named(private_home: Path, workspace: Path) -> None:
    bring(workspace)
    bring(workspace, "base")
    assert load_policy("shipped:code-assistant", project=workspace) == load_policy("code-assistant")
    directory = private_home / "config" / "purple" / "profiles"
    directory.mkdir(parents=True)
    (directory / "code-assistant.yaml").write_text("name: own\nextends: code-assistant\n")
    assert load_policy("user:code-assistant", project=workspace).name == "own"
    assert load_policy("shipped:code-assistant", project=workspace).name == "code-assistant"
    (directory / "heir.yaml").write_text("name: heir\nextends: shipped:code-assistant\n")
    assert load_policy("heir", project=workspace).resources.processes == 1024
    with pytest.raises(PolicyError, match="no profile named"):
        load_policy("shipped:heir", project=workspace)


def test_what_was_accepted_for_one_project_says_nothing_of_another(
    workspace: Path, tmp_path: Path
) -> None:
    path = bring(workspace)
    accept("code-assistant", workspace)
    for name in ("copy", "link", "directory"):
        other = tmp_path / name / ".purple"
        other.parent.mkdir()
        if name == "directory":
            other.symlink_to(path.parent)
        elif name == "link":
            other.mkdir()
            (other / path.name).symlink_to(path)
        else:
            other.mkdir()
            (other / path.name).write_bytes(path.read_bytes())
        with pytest.raises(PolicyError, match="nobody has accepted"):
            load_policy("code-assistant", project=other.parent)
    same = tmp_path / "same"
    same.symlink_to(workspace)
    assert widened("code-assistant", same)


def test_what_is_judged_is_what_is_used(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes right after it was found good makes no difference."""
    path = bring(workspace)
    accept("code-assistant", workspace)
    judged = trust.judge

    def swap(place: Path, data: bytes) -> trust.Brought:
        found = judged(place, data)
        path.write_text("name: evil\nextends: code-assistant\nfilesystem: {read: [/srv]}\n")
        return found

    monkeypatch.setattr(trust, "judge", swap)
    policy = load_policy("code-assistant", project=workspace)
    assert (policy.name, policy.filesystem.read) == ("code-assistant", ("/usr/share/dict",))


def _replaced_by_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


SPOILT: dict[str, Callable[[Path], object]] = {
    "others may write": lambda path: path.chmod(0o620),
    "others may read": lambda path: path.chmod(0o644),
    "others may write its directory": lambda path: path.parent.chmod(0o777),
    "a link": _replaced_by_a_link,
    "not JSON": lambda path: path.write_text("{"),
    "no list": lambda path: path.write_text("[]"),
    "another version": lambda path: path.write_text('{"version": 2, "accepted": {}}'),
    "a directory": _replaced_by_a_directory,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_store_that_another_could_have_written_accepts_nothing(
    spoil: Callable[[Path], object], store: Path, workspace: Path
) -> None:
    bring(workspace)
    accept("code-assistant", workspace)
    assert store.stat().st_mode & 0o777 == 0o600
    assert store.parent.stat().st_mode & 0o777 == 0o700
    assert widened("code-assistant", workspace)
    spoil(store)
    with pytest.raises(PolicyError, match="none is used"):
        load_policy("code-assistant", project=workspace)
    (info,) = [info for info in list_policies(workspace) if info.origin == "project"]
    assert not info.accepted
    with pytest.raises(PolicyError):
        trust.accept([trust.Brought(path=workspace, digest="", state="new")])
    # Who brings nothing meets no error.
    assert load_policy("strict", project=workspace).name == "strict"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_store_of_somebody_else_accepts_nothing(store: Path, workspace: Path) -> None:
    bring(workspace)
    accept("code-assistant", workspace)
    os.chown(store, 1000, 1000)
    with pytest.raises(PolicyError, match="none is used"):
        load_policy("code-assistant", project=workspace)
    os.chown(store, 0, 0)
    assert widened("code-assistant", workspace)


def test_what_one_makes_oneself_is_accepted_and_forgotten_with_it(
    store: Path, workspace: Path
) -> None:
    path = create_policy("mine", scope="project", project=workspace)
    text = path.read_text()
    assert load_policy("mine", project=workspace).name == "mine"
    delete_policy("mine", scope="project", project=workspace)
    path.write_text(text)
    with pytest.raises(PolicyError, match="nobody has accepted"):
        load_policy("mine", project=workspace)


@pytest.mark.parametrize("accepted", [True, False])
def test_what_a_person_allows_for_good_stays_accepted(accepted: bool, workspace: Path) -> None:
    path = bring(workspace)
    accept("code-assistant", workspace)
    source = PolicySource(name="code-assistant", project=workspace)
    if not accepted:  # changed before the person was asked: not theirs
        path.write_text(path.read_text() + "# more\n")
    approve_always(source, "shell", "", {"command": "x"}).write()
    if accepted:
        assert len(source.load().tools.approved) == 1
    else:
        with pytest.raises(PolicyError, match="has changed since"):
            source.load()


def test_nothing_is_added_to_what_was_asked_for_as_it_was_shipped(private_home: Path) -> None:
    with pytest.raises(PolicyError, match="as it was shipped"):
        approve_always(PolicySource(name="shipped:strict"), "shell", "", {"command": "x"})
    source = PolicySource(name="user:strict")
    approve_always(source, "shell", "", {"command": "x"}).write()
    assert len(source.load().tools.approved) == 1


def test_accepting_changes_the_stamp(workspace: Path) -> None:
    bring(workspace)
    source = PolicySource(name="code-assistant", project=workspace)
    before = source.stamp()
    assert source.stamp() == before
    accept("code-assistant", workspace)
    assert source.stamp() != before
