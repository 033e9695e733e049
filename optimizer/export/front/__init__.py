"""The front as an ONNX graph, its weights rounded."""
