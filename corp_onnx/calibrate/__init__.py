"""Images -> moments: what is calibrated on, and the run that fills the sums."""
