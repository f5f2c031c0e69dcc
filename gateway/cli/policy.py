"""A verb's policy, and what is said of a project's own files in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...policies import Policy, PolicySource


def in_force(source: PolicySource) -> Policy:
    """The policy, to be used; the project's files that it is made of are named on stderr.

    Raises:
        PolicyError: as `load_policy`.
    """
    from ...policies import read_policy

    policy, brought = read_policy(source.name, project=source.project, accepted=True)
    for file in brought:
        print(f"purple: policy {policy.name} is made of {file.path}, as accepted", file=sys.stderr)
    return policy


def looked_at(name: str, project: Path) -> Policy:
    """The policy, to be shown and not used; what of it nobody has accepted is named on stderr.

    Raises:
        PolicyError: there is none, or it is wrong.
    """
    from ...policies import read_policy

    policy, brought = read_policy(name, project=project)
    for file in brought:
        if file.state != "accepted":
            why = (
                "has changed since it was accepted"
                if file.state == "changed"
                else "is not accepted"
            )
            print(
                f"purple: {file.path} {why}: shown, not used; see purple profile accept {name}",
                file=sys.stderr,
            )
    return policy
