"""The NUAGES setting."""

from __future__ import annotations

import pytest
from django.test import override_settings

from nuages.conf import KEYS, setting


def test_defaults() -> None:
    for name, key in KEYS.items():
        assert setting[name] == key.default
        assert isinstance(key.default, key.types)
        assert key.meaning.endswith(".")
        assert not key.choices or key.default in key.choices


def test_a_value_is_used_and_forgotten_when_the_setting_changes() -> None:
    with override_settings(NUAGES={"SCOPE_TIMEOUT": 1.5}):
        assert setting["SCOPE_TIMEOUT"] == 1.5
        assert setting["COMMIT_TIMEOUT"] == KEYS["COMMIT_TIMEOUT"].default
        with override_settings(NUAGES={"SCOPE_TIMEOUT": 2}):
            assert setting["SCOPE_TIMEOUT"] == 2
        assert setting["SCOPE_TIMEOUT"] == 1.5
    assert setting["SCOPE_TIMEOUT"] == KEYS["SCOPE_TIMEOUT"].default


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        setting["NO_SUCH"]
