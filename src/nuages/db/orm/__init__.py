"""The ORM's `a*` methods, native; what users get beyond them."""
