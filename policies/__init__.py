"""What is allowed: pure values and decisions.

`load_policy` reads a `Policy` (model.py) from YAML; `decide` judges a tool call by it. Only load.py
touches files.
"""

from __future__ import annotations

from .errors import PolicyError
from .load import ProfileInfo, create_policy, list_policies, load_policy
from .model import Policy, SyscallRule
from .rules import Decision, decide

__all__ = [
    "Decision",
    "Policy",
    "PolicyError",
    "ProfileInfo",
    "SyscallRule",
    "create_policy",
    "decide",
    "list_policies",
    "load_policy",
]
