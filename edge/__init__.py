"""The device: front engine, session, drafting, transport, and the local API."""
