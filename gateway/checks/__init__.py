"""
What `gateway check` finds before anything runs. Knows no setting by its meaning.
"""
