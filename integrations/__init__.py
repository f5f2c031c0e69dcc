"""Where people already are: clients (`clients`) and agent frameworks, each an optional extra.

`bridge` reaches a gateway from a framework's threads and event loops; `functions` runs a Python function
in a sandbox. `langchain` needs its framework and is imported by nothing here.
"""
