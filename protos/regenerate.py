"""Regenerate the committed stubs from split_inference.proto: `make protos` runs this.

The stubs are committed because grpcio-tools is a development tool. CI regenerates them and fails
on any difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc


def main() -> int:
    """Write the stubs beside the .proto file; the exit status of protoc."""
    root = Path(__file__).resolve().parent.parent
    return int(
        protoc.main(
            [
                "protoc",
                f"--proto_path={root}",
                f"--python_out={root}",
                f"--pyi_out={root}",
                f"--grpc_python_out={root}",
                f"--mypy_grpc_out={root}",
                "protos/split_inference.proto",
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
