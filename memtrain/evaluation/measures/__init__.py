"""One file is one measure of copying or of quality, on images alone."""
