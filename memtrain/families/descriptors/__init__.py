"""An open folder: each file is one way to tell pictures apart. A configuration names a class by its import path."""
