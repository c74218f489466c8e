"""
A strict conversation API to try the gateway against, and the demo.
"""
