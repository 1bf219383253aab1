"""The version, in one place: read by the package, the reports and pyproject.toml."""

__version__ = "0.1.0"
