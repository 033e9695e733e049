"""Devices and links: profiles, the profiler that measures them, the link emulator."""
