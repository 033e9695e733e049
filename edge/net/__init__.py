"""The device's network: streams over gRPC, credentials, diagnosis, and the link probe.

gRPC's core writes its own log to stderr, below Python's. An error of ours says the same in one
line, so the log is off unless `GRPC_VERBOSITY` says otherwise. gRPC reads it at its first call.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
