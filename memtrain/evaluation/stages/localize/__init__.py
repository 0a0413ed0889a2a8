"""The stage `localize`: where a memorized image sits, and what brings it back."""
