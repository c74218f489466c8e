"""
The tests that rules bring with them.
"""
