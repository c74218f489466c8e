"""
Rules tried without a network: the tests that they bring with them, and the calls of an audit log.
"""
