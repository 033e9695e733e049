"""Keys and values of layers that move from the edge to the cloud, as frames of bytes."""
