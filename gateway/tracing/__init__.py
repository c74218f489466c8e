"""
Tracing, where it is configured: the calls' spans, and who exports them. Nothing else imports OpenTelemetry.
"""
