"""Everything that Nuages overrides in Django and asgiref; nothing patches elsewhere."""

from nuages.seams.table import (
    DJANGO_VERSIONS,
    Seam,
    all_seams,
    install,
    install_for_tests,
    installed,
    problems,
    test_seams,
)

__all__ = [
    "DJANGO_VERSIONS",
    "Seam",
    "all_seams",
    "install",
    "install_for_tests",
    "installed",
    "problems",
    "test_seams",
]
