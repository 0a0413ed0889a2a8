"""Measures of copying: one file is one measure; all say how alike a generation and a picture are."""
