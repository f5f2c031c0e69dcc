"""Attacks as programs: each tries one thing that a sandbox must refuse, and says what happened.

They run inside, by an interpreter of its own, with the standard library alone: `frame` starts one, of
`files`, `processes`, `kernel`, `network` or `limits`. It refuses to run where nothing holds it: outside
a sandbox, root's attempt would really change the host. What each is expected to say is in attack.py.
"""

from .frame import NOT_IN_A_SANDBOX, namespaces

__all__ = ["NOT_IN_A_SANDBOX", "namespaces"]
