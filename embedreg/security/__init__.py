"""Secrets and trust: variables, references, redaction, addresses, grants."""
