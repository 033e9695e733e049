"""The network of the device: transport, gRPC, and the link probe."""
