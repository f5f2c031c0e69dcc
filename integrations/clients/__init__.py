"""MCP clients on this machine: register Purple there, take their servers behind it, undo both.

`known` says where each client keeps its servers; `entries` what we write there; `files` changes a
client's file, atomically and reversibly; `jsonc` and `toml` edit text in place; `mcpb` makes a
bundle. The command line is in `integrations.cli`.
"""
