"""The search for the value neurons that carry a memorized image (NeMo, Hintersdorf et al., NeurIPS 2024)."""
