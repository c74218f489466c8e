"""
Downstream: a client's connection, its requests and the replies written to it.
"""
