"""The OpenAI-compatible server on the device."""
