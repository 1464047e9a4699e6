"""The Django project that every server serves: as `startproject` makes it, with Nuages."""
