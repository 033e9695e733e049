"""Entropy coding: rANS, signed integers, trellis-coded integers."""
