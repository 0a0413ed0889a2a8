"""One file per family of diffusers pipelines: how it encodes captions and calls its denoiser in training."""
