"""The ORM's `a*` methods, native; and what users get beyond those."""
