"""The server's status page: what the server holds now, and the curves of the last hour."""
