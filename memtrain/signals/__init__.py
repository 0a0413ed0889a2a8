"""Per-sample training signals. One file is one signal."""
