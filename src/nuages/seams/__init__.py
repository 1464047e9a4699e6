"""All overrides of Nuages in Django and asgiref; nothing patches elsewhere."""

from nuages.seams.installation import (
    all_seams,
    install,
    install_for_tests,
    installed,
    problems,
    test_seams,
)
from nuages.seams.table import DJANGO_VERSIONS, Seam

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
