"""What may leave a sandbox, as parts: reading requests inside TLS, and credentials it never holds.

`inspect.Interceptor` serves one connection whose name and port are allowed (`policies.hosts`), with
`tls` and `ca` for its two handshakes, `http1` and `http2` for its requests, `http` and `target` for
what is admitted, `credentials` for what is put in. Nothing accepts a sandbox's connections yet: a
policy that grants a host is refused (`Policy.unsupported`).
"""

from __future__ import annotations
