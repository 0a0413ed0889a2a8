"""Model plumbing: the attention of each denoiser family, the probe, and loading and saving of pipelines."""
