"""Plans, costs, run-time decisions, search, simulation, and the export of bundles."""

from hwprofiles.telemetry import turn_off_telemetry

turn_off_telemetry()
