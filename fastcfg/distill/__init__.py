"""Guidance distillation: a guided teacher becomes a student that takes the scale as an input and needs one pass."""
