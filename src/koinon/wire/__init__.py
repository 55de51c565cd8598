"""Bytes, identities, TLS and WebSockets."""
