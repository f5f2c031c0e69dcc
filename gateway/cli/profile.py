"""`purple profile create | list | show | check | diff | explain | accept | delete`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from . import accept, explain


def add_parser(verbs: Any) -> None:
    """Add the verb group."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "profile", help="make, list, show, check, compare, explain, accept and delete profiles"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="write a new profile that extends another")
    create.add_argument("name")
    create.add_argument(
        "--extends", metavar="PROFILE",
        help="default: the shipped one of its name, else code-assistant",
    )  # fmt: skip
    create.add_argument("--project", action="store_true", help="in .purple/ here, not for the user")
    actions.add_parser("list", help="every profile that can be named")
    for name, text in (("show", "print a profile, merged"), ("check", "say what is wrong with it")):
        action = actions.add_parser(name, help=text)
        action.add_argument("profile", help="name or path")
    compare = actions.add_parser("diff", help="say in plain words what changes from one to another")
    compare.add_argument("profile", help="name or path")
    compare.add_argument("other", help="name or path")
    delete = actions.add_parser("delete", help="remove a profile of yours")
    delete.add_argument("name")
    delete.add_argument("--project", action="store_true", help="the one in .purple/ here")
    explain.add_parser(actions)
    accept.add_parser(actions)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the action; 2 with FILE:LINE: KEY: what is wrong on a bad profile."""
    from ...policies import PolicyError, create_policy, delete_policy
    from . import fail

    project = Path.cwd()
    scope: Literal["user", "project"] = "project" if getattr(args, "project", False) else "user"
    try:
        if args.action == "create":
            path = create_policy(args.name, extends=args.extends, scope=scope, project=project)
            print(path)
        elif args.action == "list":
            _list(project)
        elif args.action == "show":
            _show(args.profile, project)
        elif args.action == "delete":
            print(f"removed {delete_policy(args.name, scope=scope, project=project)}")
        elif args.action == "diff":
            return _diff(args.profile, args.other, project)
        elif args.action == "explain":
            return explain.explain(args)
        elif args.action == "accept":
            return accept.accept(args)
        else:
            return _check(args.profile, project)
    except PolicyError as error:
        return fail(str(error))
    return 0


def _list(project: Path) -> None:
    from ...policies import list_policies
    from ..approvals.question import visible

    for info in list_policies(project):
        note = "" if info.accepted else f"(not accepted: purple profile accept {info.name}) "
        print(visible(f"{info.name:20} {info.origin:8} {note}{info.description}"))


def _show(name: str, project: Path) -> None:
    import yaml

    from ..approvals.question import visible
    from .policy import looked_at

    fields = looked_at(name, project).model_dump(mode="json", by_alias=True)
    for line in yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).splitlines():
        print(visible(line))


def _diff(name: str, other: str, project: Path) -> int:
    from ...policies.diff import diff
    from ..approvals.question import visible
    from .policy import looked_at

    changes = diff(looked_at(name, project), looked_at(other, project))
    for change in changes:
        print(visible(str(change)))
    if not changes:
        print(f"{name} and {other} allow the same")
    return 1 if changes else 0


def _check(name: str, project: Path) -> int:
    from ...isolation import SetupError
    from ...isolation.plan import compile_plan
    from ...isolation.syscalls import allowed_in_vain, hampered
    from ...policies.check import check
    from ..approvals.question import visible
    from .policy import looked_at

    policy = looked_at(name, project)
    findings = [*policy.unsupported()]
    try:
        findings += hampered(policy)
        if not findings:
            compile_plan(policy, None)
    except (SetupError, ValueError) as error:
        findings.append(str(error))
    findings += [*allowed_in_vain(policy), *map(str, check(policy))]
    for finding in findings:
        print(visible(f"{policy.name}: {finding}"))
    if not findings:
        print(visible(f"{policy.name}: good (version {policy.digest[:12]})"))
    return 1 if findings else 0
