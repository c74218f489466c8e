"""
The state to fill: looked up, judged for freshness, kept in a store, and locked against writes.
"""
