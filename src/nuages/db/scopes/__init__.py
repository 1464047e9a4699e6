"""Whose a connection is: scopes, the chains that use them, and who may send a statement now."""
