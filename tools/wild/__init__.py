"""The machinery of `tools/wild_models.py`."""
