"""Plans, costs, run-time decisions, search, simulation, and the export of bundles."""
