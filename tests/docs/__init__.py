"""The pages: their commands and code are read in every run of the tests, and run in the slow ones."""
