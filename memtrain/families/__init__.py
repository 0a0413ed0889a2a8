"""The families of samples: the samples that show one picture, and the samples that share a caption."""
