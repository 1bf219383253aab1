"""Presets and budgets -> the width of every unit and its solution."""
