"""The only way out of a sandbox. `gate` accepts its connections and holds them to the policy,
of which `shared` has what its gates have in common.

`opening` carries what waits for nobody, by `relay` and the package's `poller`; `questions` and `names` answer its DNS, `dial` resolves
and connects on the host's side, `connections` keeps account, `proxy` speaks to programs that want one,
`publish` carries `network.listen`. `inspect.Interceptor`
reads a connection that is allowed, with `tls` and `ca` for its two handshakes, `http1` and `http2` for
its requests, `http` and `target` for what is admitted, `credentials` for what the sandbox never holds.
"""

from __future__ import annotations
