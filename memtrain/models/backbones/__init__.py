"""One file per denoiser family: where its cross-attention, timesteps and text embeddings are."""
