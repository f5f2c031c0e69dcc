"""Purple: a gateway between an LLM agent and everything its tools touch.

Imports run one way: integrations → gateway → isolation → policies.
"""

__version__ = "0.1.0"
