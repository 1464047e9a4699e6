"""System checks, with stable ids."""
def register(): pass
