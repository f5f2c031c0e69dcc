"""Who asks: MCP on both sides.

`Gateway` is a policy over a workspace with its tools, in one object; `server` speaks MCP for it.
`calls` is the life of a tool call, `tools` are the built-in ones, `audit` is the record, `cli` the
command `purple`.
"""
