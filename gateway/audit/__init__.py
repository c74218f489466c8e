"""
The audit log: what is on it, and how it gets there before a rewrite leaves.
"""
