"""The stage `metrics`: measures of folders of images, without a model."""
