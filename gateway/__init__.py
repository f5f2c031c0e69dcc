"""Who asks: MCP on both sides.

`server` speaks to clients, `calls` is the life of a tool call, `tools` are the built-in ones,
`audit` is the record, `cli` the command `purple`.
"""
