"""The only part of the cluster that imports Ray: two applications, an actor, and the launch."""
