"""`purple doctor`: what this host can enforce, and how to mend what it cannot."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser: argparse.ArgumentParser = verbs.add_parser("doctor", help="what this host can enforce")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Print a line a layer; 1 when a layer that `base` requires is missing."""
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
