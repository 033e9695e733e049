"""A session from admission to its end: lifecycle, resumable sessions, tenants."""
