"""Database backends, by Django's ENGINE convention: `nuages.db.backends.postgresql` and so on."""
