"""A project with the debug toolbar, whose SQL panel counts the queries of a request."""
