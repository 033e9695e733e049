"""The compiled loops of the codec, and the loader of compiled kernels."""
