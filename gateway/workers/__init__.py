"""
Several processes on one port: a supervisor that starts, watches and reloads them, and speaks for all.
"""
