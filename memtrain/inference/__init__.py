"""One file per inference-time mitigation, usable on any diffusers pipeline of a known family."""
