"""What changes from one policy to another, in plain words, and in which direction. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel

from .reach import denied, reached
from .words import bytes_words

if TYPE_CHECKING:
    from .model import Policy

Direction = Literal["wider", "narrower", "other"]
SIGNS: dict[Direction, str] = {"wider": "+", "narrower": "-", "other": "~"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference.

    Attributes:
        direction: Whether the second policy allows more, less, or something else.
        key: Of the policy, as it is written in a file.
        text: In plain words, about the second policy.
    """

    direction: Direction
    key: str
    text: str

    def __str__(self) -> str:
        return f"{SIGNS[self.direction]} {self.text} ({self.key})"


_Found = tuple[Direction, str]
_Words = Callable[[Any], str]


def diff(one: Policy, other: Policy) -> list[Change]:
    """What is different in `other`, section by section. Name and description do not count."""
    return [
        Change(direction=direction, key=key, text=text)
        for key, path in leaves(type(one))
        if key not in _unsaid(other)
        for direction, text in _KEYS.get(key, _choice(key))(_value(one, path), _value(other, path))
    ]


def _unsaid(other: Policy) -> tuple[str, ...]:
    """Keys whose changes say nothing; protection, too, where nothing can be written."""
    names = ("name", "description", "extends")
    writable = other.filesystem.workspace in ("write", "overlay")
    return names if writable else (*names, "filesystem.protect")


def leaves(
    model: type[BaseModel], key: str = "", path: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every key of a policy that is no section, as it is written in a file; with its field's path."""
    for name, field in model.model_fields.items():
        inner, kind = f"{key}{field.alias or name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{inner}.", (*path, name))
        else:
            yield inner, (*path, name)


def _value(policy: Policy, path: tuple[str, ...]) -> Any:
    value: Any = policy
    for part in path:
        value = getattr(value, part)
    return value


def _grants(words: str, without: str, show: _Words = str) -> Callable[[Any, Any], Iterator[_Found]]:
    """A list each entry of which allows more."""

    def compare(old: Sequence[Any], new: Sequence[Any]) -> Iterator[_Found]:
        for item in new:
            if item not in old:
                yield "wider", words.format(show(item))
        for item in old:
            if item not in new:
                yield "narrower", without.format(show(item))

    return compare


def _denies(words: str, without: str, show: _Words = str) -> Callable[[Any, Any], Iterator[_Found]]:
    """A list each entry of which allows less."""
    forward = _grants(without, words, show)
    return lambda old, new: forward(new, old)


def _items(what: str, show: _Words = str) -> Callable[[Any, Any], Iterator[_Found]]:
    """A list that has no direction."""

    def compare(old: Sequence[Any], new: Sequence[Any]) -> Iterator[_Found]:
        for items, others, verb in ((new, old, "new"), (old, new, "gone")):
            for item in items:
                if item not in others:
                    yield "other", f"{verb} {what}: {show(item)}"

    return compare


def _limit(what: str, show: _Words) -> Callable[[Any, Any], Iterator[_Found]]:
    """A number; None is no limit."""

    def said(value: Any) -> str:
        return "no limit" if value is None else show(value)

    def compare(old: Any, new: Any) -> Iterator[_Found]:
        if old != new:
            wider = new is None or (old is not None and new > old)
            yield ("wider" if wider else "narrower"), f"{what}: {said(old)} → {said(new)}"

    return compare


def _choice(what: str, *order: Any) -> Callable[[Any, Any], Iterator[_Found]]:
    """One of several; `order` from the narrowest to the widest, and none where that means nothing."""

    def compare(old: Any, new: Any) -> Iterator[_Found]:
        if old == new:
            return
        direction: Direction = "other"
        if old in order and new in order:
            direction = "wider" if order.index(new) > order.index(old) else "narrower"
        yield direction, f"{what}: {_said(old)} → {_said(new)}"

    return compare


def _map(what: str) -> Callable[[Any, Any], Iterator[_Found]]:
    """A mapping that has no direction."""

    def compare(old: Any, new: Any) -> Iterator[_Found]:
        before, after = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                yield "other", f"{what} {key}: {_said(before.get(key))} → {_said(after.get(key))}"

    return compare


def _rules(old: Sequence[Any], new: Sequence[Any]) -> Iterator[_Found]:
    """Tool rules: a denial or question that comes allows less, and one that goes allows more."""
    for items, others, verb, turned in (
        (new, old, "new rule", False),
        (old, new, "gone rule", True),
    ):
        for rule in items:
            if rule in others:
                continue
            wider = (rule.effect == "allow") is not turned
            where = f"{rule.server}: {rule.tool}" if rule.server != "*" else rule.tool
            when = "" if rule.when.strip() == "true" else f" when {rule.when}"
            yield ("wider" if wider else "narrower"), f"{verb}: {rule.effect} {where}{when}"


def _limits(old: Sequence[Any], new: Sequence[Any]) -> Iterator[_Found]:
    """Limits on calls, number by number: of several for the same calls the least counts."""
    before, after = _least(old), _least(new)
    for key in dict.fromkeys([*before, *after]):
        name, counted = key
        what, show = _NUMBERS[name]
        yield from _limit(f"{what} {counted}", show)(before.get(key), after.get(key))


def _least(limits: Sequence[Any]) -> dict[tuple[str, str], Any]:
    """Each number that is limited, by its name and the calls that it is of."""
    found: dict[tuple[str, str], Any] = {}
    for limit in limits:
        for name in _NUMBERS:
            value = getattr(limit, name)
            if value is not None:
                key = name, _counted(limit)
                found[key] = min(value, found.get(key, value))
    return found


def _counted(limit: Any) -> str:
    """The calls that a limit is for, and how they are counted."""
    whose = (("of", limit.tool), ("of server", limit.server or "built-in"), ("by", limit.client))
    named = [f"{word} {glob}" for word, glob in whose if glob != "*"]
    each = f"for each {' and '.join(sorted(limit.per))}" if limit.per else "all together"
    return " ".join([*named, each, f"in {_seconds(limit.every)}"])


def _call_rule(rule: Any) -> str:
    return f"{rule.action} {rule.syscall} when argument {rule.arg} {rule.op} {rule.value}"


def _flow_rule(rule: Any) -> str:
    after, then = rule.after, rule.then
    taken = (("reading", after.read), ("hearing from", after.host), ("calling", after.tool))
    said = " or ".join(f"{verb} {', '.join(names)}" for verb, names in taken if names)
    network = [f"{then.network} what reaches a host"] if then.network else []
    tools = (f"{effect} {glob}" for glob, effect in then.tool.items())
    return f"after {said}: {', '.join([*network, *tools])}"


def _approved(call: Any) -> str:
    return f"{call.server and call.server + ': '}{call.tool} {_said(call.arguments)}"


def _credential(credential: Any) -> str:
    place = credential.header or f"?{credential.query}"
    return f"{place} for {credential.host}"


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: Any) -> str:
    return f"{value:g}"


def _seconds(value: Any) -> str:
    return f"{value:g} s"


def _rate(value: int) -> str:
    return f"{bytes_words(value)} a second"


# Of a limit on calls: by its field, what it counts, and in which words.
_NUMBERS: dict[str, tuple[str, _Words]] = {
    "calls": ("calls", str), "concurrent": ("calls at once", str),
    "bytes": ("arguments and results", bytes_words), "seconds": ("running time", _seconds),
}  # fmt: skip
_KEYS: dict[str, Callable[[Any, Any], Iterator[_Found]]] = {
    "user": _choice("commands run as", "agent", "root"),
    "filesystem.workspace": _choice("the workspace", "none", "read", "overlay", "write"),
    "filesystem.read": _grants("may read {}", "may no longer read {}"),
    "filesystem.write": _grants("may write {}", "may no longer write {}"),
    "filesystem.hide": _denies("no longer sees {}", "sees {}, which was hidden"),
    "filesystem.protect": _denies("may no longer change {}", "may change {}, which was protected"),
    "filesystem.tmp_size": _limit("private /tmp", bytes_words),
    "syscalls.default_deny": _choice("system calls are denied unless listed", True, False),
    "syscalls.allow": _grants("may call {}", "may no longer call {}"),
    "syscalls.deny": _denies("may no longer call {}", "{} is no longer denied"),
    "syscalls.rules": _items("argument rule", _call_rule),
    "capabilities.keep": _grants("keeps {}", "no longer keeps {}"),
    "resources.memory_limit": _limit("memory", bytes_words),
    "resources.cpu_shares": _limit("CPU cores", _number),
    "resources.processes": _limit("processes", _number),
    "resources.timeout": _limit("time", _seconds),
    "resources.open_files": _limit("open files", _number),
    "resources.output_limit": _limit("output", bytes_words),
    "resources.disk": _limit("disk", bytes_words),
    "resources.io": _limit("block I/O", _rate),
    "resources.background": _limit("processes in the background", _number),
    "network.isolated": _choice("network isolated", True, False),
    "network.loopback": _choice("localhost is shared by", "sandbox", "session"),
    "network.allow": reached,
    "network.deny": denied,
    "network.tls": _choice("TLS"),
    "network.bytes_out": _limit("bytes sent", bytes_words),
    "network.listen": _grants("publishes port {}", "no longer publishes port {}"),
    "network.credentials": _grants("uses credential {}", "no longer uses credential {}", _credential),
    "devices.gpu": _choice("GPUs", "none", "all"),
    "environment.pass": _grants("sees variable {}", "no longer sees variable {}"),
    "environment.set": _map("variable"),
    "tools.default": _choice("a tool that no rule names", "deny", "ask", "allow"),
    "tools.rules": _rules,
    "tools.arguments": _map("arguments of"),
    "tools.approved": _grants("is not asked about {}", "is asked about {} again", _approved),
    "approvals.timeout": _limit("time to answer", _seconds),
    "approvals.clients": _grants("{} may show questions", "{} may no longer show questions"),
    "flow": _denies("new flow rule: {}", "gone flow rule: {}", _flow_rule),
    "limits": _limits,
    "audit.arguments": _choice("arguments in the record"),
    "audit.output": _choice("output in the record"),
    "audit.redact": _items("redacted name"),
    "dangerously_without_namespaces": _grants(
        "may lose {} where there are no namespaces", "may no longer lose {} where there are no namespaces"
    ),
    "require": _denies("requires layer {}", "no longer requires layer {}"),
}  # fmt: skip
