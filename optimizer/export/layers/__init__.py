"""The whole model, one decoder layer in memory at a time."""
