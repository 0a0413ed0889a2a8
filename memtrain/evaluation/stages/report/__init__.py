"""The report of a folder, made from the results in it."""
