"""Examples that a clone holds and a wheel does not."""
