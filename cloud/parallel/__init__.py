"""Tensor parallelism: one back over several devices of one machine, a process for each."""
