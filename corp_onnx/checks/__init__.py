"""What is refused before the work, verified after it, and measured on held-back images."""
