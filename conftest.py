"""Gives the doctests of nlx, run alone, what tests/conftest.py gives the tests."""

# Before pytest imports a file on its own: a package is to keep the functions that are named as
# their modules are.
import nlx.levels
import nlx.optim  # noqa: F401
from tests.conftest import pytest_configure  # noqa: F401
