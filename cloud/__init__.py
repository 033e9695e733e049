"""The server: sessions of many edges, one packed batch, sampling, and the gRPC service."""
