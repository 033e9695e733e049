"""Execution providers of ONNX Runtime: what can run a front's kernels, and how it is opened."""
