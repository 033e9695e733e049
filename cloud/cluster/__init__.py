"""Several replicas of one server behind one address, placed and watched by Ray Serve.

Each replica is the whole server of `cloud.server`, with a port of its own. HAProxy stands in front
(`door`), and keeps each stream with one replica. A small actor knows them all (`book`).
`cloud.cluster.on_ray` alone imports Ray.
"""
