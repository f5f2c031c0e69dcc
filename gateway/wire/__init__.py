"""The protocol on the wire: MCP in both eras, written by hand so that nothing of a message is lost.

Nouns: a transport (`stdio.Pipe`, `http`) cuts bytes into frames, `jsonrpc` makes messages of them. A
`Session` is one client; each of its requests is an `Exchange` (`exchange`). A `Front` is what a session is served
from: `Backend`s behind a `Router`. A backend is the built-in tools (`builtin`) or one tool server
(`upstream`, over a `connection`; `hearing` takes what the server says by itself), for which `eras`
translates when client and server speak different revisions.

Messages are plain dicts from one end to the other: what this code does not know, it passes on.
"""
