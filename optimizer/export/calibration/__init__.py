"""Fitting the compression levels of a split to text."""
