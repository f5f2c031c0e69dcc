"""Find, read, extend and check policies. With `trust`, all of this package that does I/O to load one."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from . import trust
from .document import Lines, check, explain, parse, tuples
from .errors import PolicyError
from .model import Policy
from .rules import compile_expression
from .trust import Brought

_SHIPPED = Path(__file__).parent / "profiles"

Named = Literal["project", "user", "shipped"]
Origin = Literal[Named, "path"]
Places = tuple[tuple[Path, Named], ...]


@dataclass(frozen=True, kw_only=True)
class ProfileInfo:
    """One profile that can be named; `accepted` is false of a project's that is not used yet."""

    name: str
    path: Path
    origin: Named
    description: str
    accepted: bool = True


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """Where a policy comes from, so that it can be read again and added to.

    Attributes:
        name: Name or path, as it was given.
        project: Directory whose `.purple/` is looked in first; None is none.
    """

    name: str
    project: Path | None = None

    def load(self) -> Policy:
        """As `load_policy`."""
        return load_policy(self.name, project=self.project)

    def locate(self) -> tuple[Path, Origin]:
        """The file that the name stands for now. Raises `PolicyError`."""
        found = find(self.name, directories(self.project))
        return found.path, found.origin

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever a file does that the policy is made of, or could be: also where a name
        begins to stand for another file, a broken file is mended, or a project's is accepted."""
        stamps: list[object] = [trust.stamp()]
        seen: tuple[str, ...] = ()
        name: object = self.name
        places = directories(self.project)
        while isinstance(name, str):
            name, places = _scoped(name, places)
            try:
                path = find(name, places, seen).path
            except PolicyError:
                path = Path()
            others = [] if _is_path(name) else [d / f"{name}.yaml" for d, _ in places]
            for file in dict.fromkeys([path, *others]):
                try:
                    stat = file.stat()
                    stamps.append((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino))
                except OSError:
                    stamps.append(str(file))
            if str(path) in seen:
                break
            seen = (*seen, str(path))
            try:
                name = parse(read_bytes(path), path)[0].get("extends")
            except PolicyError:
                break
        return tuple(stamps)

    def files(self) -> list[Path]:
        """Every file that `load` reads now, but for those that a person accepts. Raises `PolicyError`."""
        return [f.path for f in _chain(self.name, self.project, _any) if f.brought is None]

    def brought(self) -> list[Brought]:
        """Every file that a person has to accept, whether one has. Raises `PolicyError`."""
        return [f.brought for f in _chain(self.name, self.project, _any) if f.brought is not None]

    def new_file(self) -> Path:
        """The user's own file of this name, which goes before the shipped one.

        Raises:
            PolicyError: it would not: the shipped one was asked for.
        """
        name, places = _scoped(self.name, directories(self.project))
        for directory, origin in places:
            if origin == "user":
                return directory / f"{name}.yaml"
        raise PolicyError(f"{self.name} is as it was shipped; nothing can be added to it")


def load_policy(name_or_path: str, *, project: Path | None = None) -> Policy:
    """Load a policy by name (project, user, shipped, in this order) or by path.

    `user:NAME` and `shipped:NAME` leave out what would come before. What the project brings must
    have been accepted (`trust`); a path that is given here need not.

    Raises:
        PolicyError: no such profile, unreadable, wrong, or not accepted; says where and what to do.
    """
    return read_policy(name_or_path, project=project, accepted=True)[0]


def read_policy(
    name_or_path: str, *, project: Path | None = None, accepted: bool = False
) -> tuple[Policy, tuple[Brought, ...]]:
    """The policy, and what of it a person has to accept.

    Args:
        accepted: Refuse what is not, as `load_policy`. Without it the policy is to be looked at, not used.

    Raises:
        PolicyError: as `load_policy`.
    """
    files = list(_chain(name_or_path, project, _accepted if accepted else _any))
    return _policy(files), tuple(f.brought for f in files if f.brought is not None)


def list_policies(project: Path | None = None) -> list[ProfileInfo]:
    """Every profile that can be named, nearest first; a broken one says so in its description."""
    infos: list[ProfileInfo] = []
    for directory, origin in directories(project):
        for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else ():
            accepted = origin != "project"
            try:
                data = read_bytes(path)
                if project is not None and not accepted:
                    accepted = _is_accepted(place_in(project, path.name), data)
                description = str(parse(data, path)[0].get("description", ""))
            except PolicyError as error:
                description = f"cannot be read: {error.message}"
            infos.append(
                ProfileInfo(
                    name=path.stem, path=path, origin=origin, description=description,
                    accepted=accepted,
                )
            )  # fmt: skip
    return infos


def _is_accepted(place: Path, data: bytes) -> bool:
    try:
        return trust.judge(place, data).state == "accepted"
    except PolicyError:
        return False


def directories(project: Path | None) -> Places:
    """Where a name is looked for, in this order."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    own: Places = ((config / "purple" / "profiles", "user"), (_SHIPPED, "shipped"))
    return own if project is None else ((project / ".purple", "project"), *own)


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _scoped(name: str, places: Places) -> tuple[str, Places]:
    """A name without `user:` or `shipped:`, and where it is looked for."""
    origin, colon, bare = name.partition(":")
    if colon and not _is_path(name):
        for index, place in enumerate(places):
            if place[1] == origin:
                return bare, places[index:]
    return name, places


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file, and where what it extends is looked for."""

    path: Path
    origin: Origin
    places: Places


def find(name: str, places: Places, seen: tuple[str, ...] = ()) -> Found:
    """The file; of those in `seen` the next by that name, so that a profile can extend its namesake."""
    if _is_path(name):
        return Found(path=Path(name).expanduser(), origin="path", places=places)
    name, places = _scoped(name, places)
    named = [
        Found(path=directory / f"{name}.yaml", origin=origin, places=places)
        for directory, origin in places
    ]
    named = [found for found in named if found.path.is_file()]
    for found in [found for found in named if str(found.path) not in seen] or named[:1]:
        return found
    names = sorted({p.stem for directory, _ in places for p in directory.glob("*.yaml")})
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    where = ", ".join(str(directory) for directory, _ in places)
    raise PolicyError(f"no profile named {name!r}; {hint} (looked in {where})")


@dataclass(frozen=True, kw_only=True)
class _File:
    """One file of a policy, read once. `brought`: a person has to accept it; None: nobody has to."""

    path: Path
    fields: dict[str, Any]
    lines: Lines
    brought: Brought | None


_Judge = Callable[[str, Path | None, Brought], None]


def _chain(name: str, project: Path | None, judge: _Judge) -> Iterator[_File]:
    """The file that `name` stands for, then what it extends, and so on. Raises `PolicyError`.

    Args:
        judge: Told of each file that has to be accepted before it is parsed; raises to refuse it.
    """
    wanted, places = name, directories(project)
    seen: tuple[str, ...] = ()
    last: _File | None = None
    while True:
        found = find(wanted, places, seen)
        places = found.places
        if last is not None and str(found.path) in seen:
            message = f"extends itself through {wanted}"
            raise PolicyError(message, file=str(last.path), key="extends")
        data = read_bytes(found.path)
        place = _place(found, project, last)
        brought = None if place is None else trust.judge(place, data)
        if brought is not None:
            judge(name, project, brought)
        fields, lines = parse(data, found.path)
        last = _File(path=found.path, fields=fields, lines=lines, brought=brought)
        check(fields, lines, found.path)
        yield last
        if "extends" not in fields or fields["extends"] is None:
            return
        wanted, seen = str(fields["extends"]), (*seen, str(found.path))


def _place(found: Found, project: Path | None, child: _File | None) -> Path | None:
    """What a file is accepted as; None where it need not be: the user's, the shipped, a path given."""
    if found.origin == "project" and project is not None:
        return place_in(project, found.path.name)
    if found.origin != "path" or child is None:
        return None
    path = Path(os.path.abspath(found.path))
    inside = ".purple" in (*path.parts[:-1], *path.resolve().parts[:-1])
    return path if inside or child.brought is not None else None


def place_in(project: Path, name: str) -> Path:
    """What a project's own file is accepted as."""
    # Not where links lead: what was accepted for another project says nothing here.
    return project.resolve() / ".purple" / name


def _any(name: str, project: Path | None, brought: Brought) -> None:
    """Refuses nothing."""


def _accepted(name: str, project: Path | None, brought: Brought) -> None:
    if brought.state == "accepted":
        return
    what = (
        "this profile of the project has changed since it was accepted"
        if brought.state == "changed"
        else "the project brings a profile of this name, which nobody has accepted"
    )
    here = project is None or project.resolve() == Path.cwd()
    look = shlex.quote(name if here else str(brought.path))
    accept = shlex.quote(name) + ("" if here else f" --project {shlex.quote(str(project))}")
    bare = name.rpartition(":")[2]
    others = [
        f"{origin}:{bare}"
        for directory, origin in directories(None)
        if not _is_path(name) and (directory / f"{bare}.yaml").is_file()
    ]
    instead = f"; or take {' or '.join(others)} in its place" if others else ""
    raise PolicyError(
        f"{what}; look at it with `purple profile show {look}` and accept it with `purple profile "
        f"accept {accept}`{instead}", file=str(brought.path),
    )  # fmt: skip


def read_bytes(path: Path) -> bytes:
    """What the file holds. Raises `PolicyError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _policy(files: list[_File]) -> Policy:
    merged: dict[str, Any] = {}
    for file in reversed(files):
        # Said of another policy, a description would not be true of this one; and what is required of
        # a host could not be less than a parent's if it were added to.
        dropped = {"description", *(["require"] if "require" in file.fields else [])}
        merged = {key: value for key, value in merged.items() if key not in dropped}
        merged = _merge(merged, file.fields)
    path, lines = files[0].path, files[0].lines
    try:
        policy = Policy.model_validate(tuples(merged))
    except ValidationError as error:
        raise explain(error, lines, path) from None
    for index, rule in enumerate(policy.tools.rules):
        try:
            compile_expression(rule.when)
        except ValueError as error:
            key = f"tools.rules[{index}].when"
            line = lines.get(("tools", "rules", index, "when"), 0)
            raise PolicyError(str(error), file=str(path), line=line, key=key) from None
    return policy


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge, lists append, scalars replace."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(cast(dict[str, Any], old), cast(dict[str, Any], value))
        elif isinstance(old, list) and isinstance(value, list):
            items: list[Any] = [*old, *value]
            merged[key] = [item for i, item in enumerate(items) if item not in items[:i]]
        else:
            merged[key] = value
    return merged
