"""Make and remove profiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from . import trust
from .document import parse
from .errors import PolicyError
from .load import directories, find, list_policies, load_policy, place_in, read_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def create_policy(
    name: str, *, extends: str | None = None, scope: Literal["user", "project"] = "user",
    project: Path | None = None,
) -> Path:  # fmt: skip
    """Write a new profile that extends another; returns its path. A project's is accepted, too.

    Args:
        name: Of the profile.
        extends: None is the shipped profile of that name, else `code-assistant`.
        scope: Whose it is.
        project: Where to, for `project`.

    Raises:
        PolicyError: a bad name, an unknown parent, a profile of that name is already there, or with it
            another one could be loaded no more; nothing is written then.
    """
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{name!r} is no profile name; use letters, digits, '-', '_' and '.'")
    extends = extends or (name if _shipped(name) else "code-assistant")
    load_policy(extends, project=project)
    known = {info.name for info in list_policies(project)}
    loaded = [other for other in sorted(known) if _refused(other, project) is None]
    directory = dict((origin, path) for path, origin in directories(project)).get(scope)
    if directory is None:
        raise PolicyError("there is no project here; run this in a project, or use the user scope")
    path = directory / f"{name}.yaml"
    directory.mkdir(parents=True, exist_ok=True)
    text = (
        f"name: {name}\ndescription: What {name} may do.\nextends: {extends}\n"
        "# filesystem: {read: [~/datasets]}\n# resources: {memory_limit: 8G, timeout: 1h}\n"
    )
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise PolicyError(
            "this profile exists; edit it, or choose another name", file=str(path)
        ) from None
    if scope == "project" and project is not None:
        trust.accept([trust.judge(place_in(project, path.name), text.encode())])
    for other in (name, *loaded):
        if (error := _refused(other, project)) is not None:
            _remove(path, scope, project)
            raise PolicyError(f"not made, for with it {other} cannot be used: {error}")
    return path


def delete_policy(
    name: str, *, scope: Literal["user", "project"] = "user", project: Path | None = None
) -> Path:
    """Remove a profile; returns the path that it had.

    Raises:
        PolicyError: there is none of that name in that scope, or another profile extends it.
    """
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{name!r} is no profile name; a file of your own is yours to remove")
    directory = dict((origin, path) for path, origin in directories(project)).get(scope)
    path = None if directory is None else directory / f"{name}.yaml"
    if path is None or not path.is_file():
        where = [i.origin for i in list_policies(project) if i.name == name and i.origin != scope]
        hint = f"; there is a {where[0]} one, " if where else ""
        hint += (
            "which belongs to Purple" if where == ["shipped"] else "see --project" if where else ""
        )
        raise PolicyError(f"there is no {scope} profile named {name!r}{hint}")
    if find(name, directories(project)).path == path and not _shipped(name):
        heirs = [
            str(info.path)
            for info in list_policies(project)
            if info.path != path and _parent(info.path) == name
        ]
        if heirs:
            raise PolicyError(f"{', '.join(heirs)} extends it; change that first", file=str(path))
    _remove(path, scope, project)
    return path


def _remove(path: Path, scope: Literal["user", "project"], project: Path | None) -> None:
    path.unlink()
    if scope == "project" and project is not None:
        trust.forget(place_in(project, path.name))


def _refused(name: str, project: Path | None) -> PolicyError | None:
    """Why the profile cannot be used; None where it can."""
    try:
        load_policy(name, project=project)
    except PolicyError as error:
        return error
    return None


def _shipped(name: str) -> bool:
    return (directories(None)[-1][0] / f"{name}.yaml").is_file()


def _parent(path: Path) -> str:
    try:
        return str(parse(read_bytes(path), path)[0].get("extends", ""))
    except PolicyError:
        return ""
