"""Formulas: from a function of named sums to the program that every backend runs."""
