"""The back of the model in torch, and the thread that runs batches of it."""
