"""
One process that serves: its start, its signals, its reloads, its end.
"""
