"""Drafters: an interface, one drafter a file, and the registry."""
