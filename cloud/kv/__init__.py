"""Keys and values of all sessions: blocks, leases, and shared prefixes."""
