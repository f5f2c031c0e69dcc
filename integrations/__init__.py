"""Where people already are: adapters for clients and frameworks."""
