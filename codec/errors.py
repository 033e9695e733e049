"""The exceptions of the codec.

CodecError
├── EncodeError    what was asked cannot be encoded (shape, dtype, NaN, unknown level)
├── FrameError     bytes from a peer are not a frame this ladder can decode
└── TablesError    a codec tables file is missing, damaged or made for another model
"""


class CodecError(Exception):
    """Root of everything `codec` raises on purpose."""


class EncodeError(CodecError):
    """The rows or the level handed to an encoder are not encodable; nothing was sent."""


class FrameError(CodecError):
    """A received frame is truncated, corrupted, oversized or of another shape than agreed."""


class TablesError(CodecError):
    """A tables file cannot be read, or does not fit the hidden size it is loaded for."""
