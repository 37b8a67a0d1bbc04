"""Inputs and exact results of guidance rules, for any project to test itself against; see README.md."""
