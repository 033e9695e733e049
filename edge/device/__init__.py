"""What the device holds: the front, the tokenizer, memory and processors."""
