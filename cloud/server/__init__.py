"""The server process: gRPC service, streams, access, metrics and logs."""
