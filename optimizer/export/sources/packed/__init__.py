"""Checkpoints whose weights are codes and scales, unpacked tensor by tensor."""
