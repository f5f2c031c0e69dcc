"""Find, read, extend and check policies. The only module of this package that does I/O."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ValidationError

from .errors import PolicyError
from .model import Policy
from .rules import compile_expression

_SHIPPED = Path(__file__).parent / "profiles"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_Lines = dict[tuple[str | int, ...], int]


@dataclass(frozen=True, kw_only=True)
class ProfileInfo:
    """One profile that can be named."""

    name: str
    path: Path
    origin: Literal["project", "user", "shipped"]
    description: str


Origin = Literal["project", "user", "shipped", "path"]


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
        path = _find(self.name, self.project)
        for directory, origin in _directories(self.project):
            if "/" not in self.name and path.parent == directory:
                return path, origin
        return path, "path"

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever a file does that the policy is made of, or could be: also where a name
        begins to stand for another file, or a broken file is mended."""
        found: list[object] = []
        seen: list[str] = []
        name: object = self.name
        while isinstance(name, str):
            try:
                path = _find(name, self.project, tuple(seen))
            except PolicyError:
                path = Path()
            directories = [] if "/" in name else [d for d, _ in _directories(self.project)]
            for file in dict.fromkeys([path, *(d / f"{name}.yaml" for d in directories)]):
                try:
                    stat = file.stat()
                    found.append((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino))
                except OSError:
                    found.append(str(file))
            if str(path) in seen:
                break
            seen.append(str(path))
            try:
                name = _read(path)[0].get("extends")
            except PolicyError:
                break
        return tuple(found)

    def files(self) -> list[Path]:
        """Every file that `load` reads now. Raises `PolicyError`."""
        found: list[Path] = []
        name: object = self.name
        while isinstance(name, str):
            path = _find(name, self.project, tuple(map(str, found)))
            if path in found:
                break
            found.append(path)
            name = _read(path)[0].get("extends")
        return found

    def new_file(self) -> Path:
        """The user's own file of this name, which goes before the shipped one."""
        return dict((o, d) for d, o in _directories(self.project))["user"] / f"{self.name}.yaml"


def load_policy(name_or_path: str, *, project: Path | None = None) -> Policy:
    """Load a policy by name (project, user, shipped, in this order) or by path.

    Raises:
        PolicyError: no such profile, unreadable, or wrong; says where and what is near.
    """
    path = _find(name_or_path, project)
    fields, lines = _read(path)
    _check(fields, lines, path)
    merged = _extend(fields, path, project, (str(path),))
    try:
        policy = Policy.model_validate(_tuples(merged))
    except ValidationError as error:
        raise _explain(error, lines, path) from None
    for index, rule in enumerate(policy.tools.rules):
        try:
            compile_expression(rule.when)
        except ValueError as error:
            key = f"tools.rules[{index}].when"
            line = lines.get(("tools", "rules", index, "when"), 0)
            raise PolicyError(str(error), file=str(path), line=line, key=key) from None
    return policy


def list_policies(project: Path | None = None) -> list[ProfileInfo]:
    """Every profile that can be named, nearest first; a broken one says so in its description."""
    infos: list[ProfileInfo] = []
    for directory, origin in _directories(project):
        for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else ():
            try:
                description = str(_read(path)[0].get("description", ""))
            except PolicyError as error:
                description = f"cannot be read: {error.message}"
            infos.append(
                ProfileInfo(name=path.stem, path=path, origin=origin, description=description)
            )
    return infos


def create_policy(
    name: str, *, extends: str = "code-assistant", scope: Literal["user", "project"] = "user",
    project: Path | None = None,
) -> Path:  # fmt: skip
    """Write a new profile that extends another; returns its path.

    Raises:
        PolicyError: a bad name, an unknown parent, or a profile of that name is already there.
    """
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{name!r} is no profile name; use letters, digits, '-', '_' and '.'")
    load_policy(extends, project=project)
    directory = dict((origin, path) for path, origin in _directories(project)).get(scope)
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
    directory = dict((origin, path) for path, origin in _directories(project)).get(scope)
    path = None if directory is None else directory / f"{name}.yaml"
    if path is None or not path.is_file():
        where = [i.origin for i in list_policies(project) if i.name == name and i.origin != scope]
        hint = f"; there is a {where[0]} one, " if where else ""
        hint += (
            "which belongs to Purple" if where == ["shipped"] else "see --project" if where else ""
        )
        raise PolicyError(f"there is no {scope} profile named {name!r}{hint}")
    if _find(name, project) == path and not _shipped(name):
        heirs = [
            str(info.path)
            for info in list_policies(project)
            if info.path != path and _parent(info.path) == name
        ]
        if heirs:
            raise PolicyError(f"{', '.join(heirs)} extends it; change that first", file=str(path))
    path.unlink()
    return path


def _shipped(name: str) -> bool:
    return (_SHIPPED / f"{name}.yaml").is_file()


def _parent(path: Path) -> str:
    try:
        return str(_read(path)[0].get("extends", ""))
    except PolicyError:
        return ""


def _directories(project: Path | None) -> list[tuple[Path, Literal["project", "user", "shipped"]]]:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    found: list[tuple[Path, Literal["project", "user", "shipped"]]] = []
    if project is not None:
        found.append((project / ".purple", "project"))
    found.append((config / "purple" / "profiles", "user"))
    found.append((_SHIPPED, "shipped"))
    return found


def _find(name_or_path: str, project: Path | None, seen: tuple[str, ...] = ()) -> Path:
    """The file; of those in `seen` the next by that name, so that a profile can extend its namesake."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path).expanduser()
    directories = [directory for directory, _ in _directories(project)]
    found = [directory / f"{name_or_path}.yaml" for directory in directories]
    found = [path for path in found if path.is_file()]
    for path in [path for path in found if str(path) not in seen] or found[:1]:
        return path
    names = sorted({info.name for info in list_policies(project)})
    near = difflib.get_close_matches(name_or_path, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    where = ", ".join(str(directory) for directory in directories)
    raise PolicyError(f"no profile named {name_or_path!r}; {hint} (looked in {where})")


def _read(path: Path) -> tuple[dict[str, Any], _Lines]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise PolicyError(f"cannot be read: {reason}", file=str(path)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise PolicyError(f"not YAML: {error.problem}", file=str(path), line=line) from None
    except yaml.YAMLError as error:
        raise PolicyError(f"not YAML: {error}", file=str(path)) from None
    if not isinstance(node, yaml.MappingNode):
        raise PolicyError("a policy is a mapping that starts with `name:`", file=str(path), line=1)
    lines: _Lines = {}
    _mark(node, (), lines, path)
    return cast(dict[str, Any], yaml.safe_load(text)), lines


def _mark(node: yaml.Node, key: tuple[str | int, ...], lines: _Lines, path: Path) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name_node, value in node.value:
            inner = (*key, str(name_node.value))
            if inner in lines:
                raise PolicyError(
                    "this key is given twice; keep one", file=str(path),
                    line=name_node.start_mark.line + 1, key=_dotted(inner),
                )  # fmt: skip
            lines[inner] = name_node.start_mark.line + 1
            _mark(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, (*key, index), lines, path)


def _check(fields: dict[str, Any], lines: _Lines, path: Path) -> None:
    """Check one file by itself, so that an error has this file's line."""
    try:
        Policy.model_validate(_tuples(fields))
    except ValidationError as error:
        raise _explain(error, lines, path) from None


def _extend(
    fields: dict[str, Any], path: Path, project: Path | None, seen: tuple[str, ...]
) -> dict[str, Any]:
    parent = fields.get("extends")
    if parent is None:
        return fields
    parent_path = _find(str(parent), project, seen)
    if str(parent_path) in seen:
        raise PolicyError(f"extends itself through {parent}", file=str(path), key="extends")
    inherited, lines = _read(parent_path)
    _check(inherited, lines, parent_path)
    base = _extend(inherited, parent_path, project, (*seen, str(parent_path)))
    return _merge(base, fields)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge, lists append (`require` and all else alike), scalars replace."""
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


def _tuples(value: Any) -> Any:
    """YAML's lists as the tuples that a frozen, strict model takes."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in cast(Sequence[Any], value))
    return value


def _explain(error: ValidationError, lines: _Lines, path: Path) -> PolicyError:
    first = error.errors()[0]
    parts = list(first["loc"])
    while len(parts) > 1 and tuple(parts) not in lines:
        parts.pop()
    key = tuple(parts)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known(key[:-1])
        near = difflib.get_close_matches(str(parts[-1]), known, 1)
        message = "unknown key" + (
            f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        )
    line = lines.get(key, lines.get(key[:-1], 1))
    return PolicyError(message, file=str(path), line=line, key=_dotted(key))


def _known(key: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Policy
    for part in key:
        if isinstance(part, int):
            continue
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
                for kind in inner:
                    if isinstance(kind, type) and issubclass(kind, BaseModel):
                        model = kind
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _dotted(key: tuple[str | int, ...]) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
