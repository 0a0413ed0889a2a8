"""Which samples are one picture, and which share a caption."""
