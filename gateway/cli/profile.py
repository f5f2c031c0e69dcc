"""`purple profile create | list | show | check`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal


def add_parser(verbs: Any) -> None:
    """Add the verb group."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "profile", help="make, list, show and check profiles"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="write a new profile that extends another")
    create.add_argument("name")
    create.add_argument("--extends", default="code-assistant", metavar="PROFILE")
    create.add_argument("--project", action="store_true", help="in .purple/ here, not for the user")
    actions.add_parser("list", help="every profile that can be named")
    for name, text in (("show", "print a profile, merged"), ("check", "say what is wrong with it")):
        action = actions.add_parser(name, help=text)
        action.add_argument("profile", help="name or path")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the action; 2 with FILE:LINE: KEY: what is wrong on a bad profile."""
    from ...policies import PolicyError, create_policy, list_policies, load_policy
    from . import fail

    project = Path.cwd()
    try:
        if args.action == "create":
            scope: Literal["user", "project"] = "project" if args.project else "user"
            path = create_policy(args.name, extends=args.extends, scope=scope, project=project)
            print(path)
        elif args.action == "list":
            for info in list_policies(project):
                print(f"{info.name:20} {info.origin:8} {info.description}")
        elif args.action == "show":
            import yaml

            policy = load_policy(args.profile, project=project)
            fields = policy.model_dump(mode="json", by_alias=True)
            print(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), end="")
        else:
            return _check(args.profile, project)
    except PolicyError as error:
        return fail(str(error))
    return 0


def _check(name: str, project: Path) -> int:
    from ...isolation import SetupError
    from ...isolation.plan import compile_plan
    from ...policies import load_policy

    policy = load_policy(name, project=project)
    findings = policy.unsupported()
    if not findings:
        try:
            compile_plan(policy, None)
        except SetupError as error:
            findings = [str(error)]
    for finding in findings:
        print(f"{policy.name}: {finding}")
    if not findings:
        print(f"{policy.name}: good (version {policy.digest[:12]})")
    return 1 if findings else 0
