"""
The life of a call, from a client's request to the reply it gets. Begin with lifecycle.py.
"""
