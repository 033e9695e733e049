"""The profiler: measures this machine as an edge or as a server."""
