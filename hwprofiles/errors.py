"""The errors of the hwprofiles room.

HwProfilesError            root: everything this room raises on purpose
├── ProfileError           a profile or trace file is missing, malformed or impossible
├── ProviderError          an execution provider is not there, does not start or runs nothing
│   └── UnknownKernelError     this ONNX Runtime is too old for a kernel of the edge's
└── EmulatorError          the link emulator cannot start, or is used after it has stopped
"""

from __future__ import annotations


class HwProfilesError(Exception):
    """Root of this room's errors; the message is one line a user can act on."""


class ProfileError(HwProfilesError):
    """A profile file cannot be used; the message names the file, the key and what is allowed."""


class ProviderError(HwProfilesError):
    """An execution provider cannot be used; the message says why, and what brings it."""


class UnknownKernelError(ProviderError):
    """The installed ONNX Runtime does not know a kernel that fronts are made of."""


class EmulatorError(HwProfilesError):
    """The link emulator cannot do what was asked (address in use, already stopped)."""
