"""Activation compression: levels, entropy coding, and the frame that carries them."""
