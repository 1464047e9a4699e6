"""Ownership of connections: scopes, the chains that use them, and who may send a statement now."""
