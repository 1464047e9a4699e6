"""The one Django project that every Django subject serves; variables choose its settings."""
