"""Squeezed attention: clusters of a fixed context's keys, and which of them a query reads."""
