"""Devices and links: profiles, the profiler that measures them, the link emulator."""

from hwprofiles.telemetry import turn_off_telemetry

turn_off_telemetry()
