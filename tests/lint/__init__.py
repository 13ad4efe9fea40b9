"""Checks of our own, beside ruff, mypy and import-linter."""
