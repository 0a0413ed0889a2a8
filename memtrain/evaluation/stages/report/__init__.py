"""The report of a folder, made anew from the results in it."""
