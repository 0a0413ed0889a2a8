"""One file per denoiser family, with the places of its cross-attention, timesteps and text embeddings."""
