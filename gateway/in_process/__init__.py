"""
The lifecycle without a listener of its own: under another ASGI server, before an application, in a client.
"""
