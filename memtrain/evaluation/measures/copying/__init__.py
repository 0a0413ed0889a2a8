"""Measures of copying: one file is one measure of the similarity of a generation and a picture."""
