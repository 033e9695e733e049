"""What levels and front layers cost in quality, measured on held-out text."""
