"""The stage `metrics`: measures of folders of images; no model is loaded."""
