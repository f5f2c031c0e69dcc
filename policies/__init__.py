"""What is allowed: pure values and decisions.

`load_policy` reads a `Policy` (model.py) from YAML. A call's arguments become canonical (canonical.py,
request.py; commands.py for command lines), then `Rules` judges it, and narrow.py says what of the
policy it needs (`Grant`). check.py finds what in a policy will not be meant, diff.py what changes from
one to another, words.py says them. Only load.py reads files, of which trust.py knows what a person has
accepted; own.py makes and removes them, and amend.py adds to one.
"""

from __future__ import annotations

from .canonical import CanonicalError, Place, parse_json, unique_keys
from .errors import PolicyError
from .load import (
    PolicySource,
    ProfileInfo,
    list_policies,
    load_policy,
    read_policy,
)  # fmt: skip
from .model import Policy, SyscallRule
from .narrow import Grant, narrow
from .own import create_policy, delete_policy
from .request import Request
from .rules import Decision, Rules, decide

__all__ = [
    "CanonicalError",
    "Decision",
    "Grant",
    "Place",
    "Policy",
    "PolicyError",
    "PolicySource",
    "ProfileInfo",
    "Request",
    "Rules",
    "SyscallRule",
    "create_policy",
    "decide",
    "delete_policy",
    "list_policies",
    "load_policy",
    "narrow",
    "parse_json",
    "read_policy",
    "unique_keys",
]
