"""The stage `calibrate`: what `localize` compares with, from prompts that are not memorized."""
