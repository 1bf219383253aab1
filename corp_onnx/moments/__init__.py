"""Sums over images and tokens, as values and as they run: NumPy and SciPy only."""
