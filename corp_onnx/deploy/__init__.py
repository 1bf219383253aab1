"""What comes after pruning: the file in another precision, as an engine, behind a server."""
