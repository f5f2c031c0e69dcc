"""The only way out of a sandbox: what leaves it is decided by name, dialled here, and counted.

Nouns: a `Gate` serves one engine. Each sandbox that runs a call has an `Account` there (its names
and its connections). A `Flow` is one accepted connection whose destination is allowed by host and
port; a `Handler` speaks for it (`passing` compares names and relays bytes, `inspect` reads
requests). What is left of it is a `Connection` in the call's result.

    sandbox ─TCP, any address─▶ netns.py: nft tproxy ─▶ Gate ─▶ Flow ─▶ Handler ─dial()─▶ server
    sandbox ─DNS──────────────▶ dns.py: synthetic addresses for allowed names, else NXDOMAIN
"""

from __future__ import annotations
