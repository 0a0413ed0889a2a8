"""Inference-time mitigations, one per file, for any diffusers pipeline of a known family."""
