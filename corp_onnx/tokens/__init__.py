"""Tokens of the last block that no output reads: found, and no longer computed."""
