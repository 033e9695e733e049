"""The device: front engine, session, drafting, transport, and the local API."""

from hwprofiles.telemetry import turn_off_telemetry

turn_off_telemetry()
