"""`purple doctor`: what this host can enforce, how to mend what it cannot, and whether it holds."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "doctor",
        help="what this host can enforce",
        description="With --attack: run attacks on each layer from inside a sandbox; 1 if one succeeds.",
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.add_argument("--attack", action="store_true", help="attack a sandbox from inside")
    parser.add_argument("-p", "--profile", default="base", help="of that sandbox: name or path")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Print a line a layer; 1 when a layer that `base` requires is missing, or an attack succeeds."""
    if args.attack:
        return _attack(args)
    from ...isolation.probe import probe_host

    findings = probe_host()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.layer:12} {finding.status:8} {finding.detail}")
            if finding.fix:
                print(f"{'':12} fix:     {finding.fix}")
    gaps = [f for f in findings if f.status != "full" and f.layer != "cgroup"]
    return 1 if gaps else 0


def _attack(args: argparse.Namespace) -> int:
    from ...isolation import IsolationError
    from ...isolation.attack import attack
    from ...policies import PolicyError, PolicySource
    from . import fail
    from .policy import in_force

    try:
        policy = in_force(PolicySource(name=args.profile, project=Path(".")))
        outcomes = asyncio.run(attack(policy))
    except PolicyError as error:
        return fail(str(error))
    except IsolationError as error:
        return fail(str(error), 125)
    if args.json:
        print(json.dumps([outcome.to_json() for outcome in outcomes], indent=2))
    else:
        for outcome in outcomes:
            print(outcome.sentence())
    return 1 if any(outcome.broken for outcome in outcomes) else 0
