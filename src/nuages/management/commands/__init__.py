"""The commands: `runserver` for development, `serve` for production."""
