"""Attention of a packed batch: an interface, one backend a file, and the registry."""
