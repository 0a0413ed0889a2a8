"""Counts of an evaluation: each file has one count, a pure function of comparisons with training pictures."""
