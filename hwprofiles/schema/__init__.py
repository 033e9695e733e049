"""Strict YAML files as dataclasses, and their JSON Schema."""
