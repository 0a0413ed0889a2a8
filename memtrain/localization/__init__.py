"""Which value neurons carry a memorized image (NeMo, Hintersdorf et al., NeurIPS 2024)."""
