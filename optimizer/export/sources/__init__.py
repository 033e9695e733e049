"""Reading models: folders, GGUF files, hubs."""
