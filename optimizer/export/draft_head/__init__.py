"""The trained draft head: corpus, training, export."""
