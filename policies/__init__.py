"""What is allowed: pure values and decisions.

`load_policy` reads a `Policy` (model.py) from YAML. A call's arguments become canonical (canonical.py,
request.py; commands.py for command lines), then `Rules` judges it. Only load.py touches files.
"""

from __future__ import annotations

from .canonical import CanonicalError, Place, parse_json, unique_keys
from .errors import PolicyError
from .load import ProfileInfo, create_policy, list_policies, load_policy
from .model import Policy, SyscallRule
from .request import Request
from .rules import Decision, Rules, decide

__all__ = [
    "CanonicalError",
    "Decision",
    "Place",
    "Policy",
    "PolicyError",
    "ProfileInfo",
    "Request",
    "Rules",
    "SyscallRule",
    "create_policy",
    "decide",
    "list_policies",
    "load_policy",
    "parse_json",
    "unique_keys",
]
