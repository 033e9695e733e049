"""The kinds of compression level: an interface, one kind a file, and the registry."""
