"""Backends: one folder each, with the choice between them in `registry`."""
