"""
What a configuration does to calls, and how two differ in that.
"""
