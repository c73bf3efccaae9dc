"""Gives the doctests of nlx, run alone, what tests/conftest.py gives the tests."""

from tests.conftest import pytest_configure  # noqa: F401
