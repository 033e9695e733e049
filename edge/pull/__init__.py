"""The device gets its side of a bundle from the server: listed, fetched, checked, put in place."""
