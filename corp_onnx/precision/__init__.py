"""A float32 model in float16 or 8-bit integers, checked against its source."""
