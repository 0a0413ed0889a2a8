"""One file per family of diffusers pipelines: its encoding of captions, and its call of the denoiser in training."""
