"""How fast models are: files opened on a provider, timed in turns."""
