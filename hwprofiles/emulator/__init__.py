"""The link emulator: real sockets behind a shaped link."""
