"""
Upstream: a pool of connections, and a request sent with its one reply.
"""
