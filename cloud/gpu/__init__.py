"""Triton kernels of the server on a GPU."""
