"""How long widths take: stretches of the model itself, timed in turns, as a price list for the search."""
