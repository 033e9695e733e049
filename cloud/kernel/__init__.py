"""The compiled 8-bit decoder layers, and the library that loads them."""
