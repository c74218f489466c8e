"""
The operator's side: health, and what has been counted.
"""
