"""Whole trainings of thirty steps, one file a trainer: watched, skipped, recorded, and equal to a hand-written loop."""
