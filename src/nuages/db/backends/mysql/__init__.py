"""Django's MySQL backend on the event loop, for MySQL and MariaDB."""
