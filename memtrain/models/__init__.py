"""Model plumbing: where attention sits in each denoiser family, the probe, and loading and saving pipelines."""
