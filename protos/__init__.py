"""The wire: messages as frozen values, and the only door to the generated stubs."""
