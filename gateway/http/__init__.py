"""
The grammar of HTTP/1.1, and what an intermediary does to a message. Pure: no I/O, no clock, no logging.
"""
