"""A reverse proxy that repairs legacy PATCH calls to a conversation API, and records every repair."""

__version__ = "0.1.0"
