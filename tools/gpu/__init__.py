"""The machinery of `tools/gpu_table.py`."""
