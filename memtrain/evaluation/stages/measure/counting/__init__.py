"""The counts that people ask for: one file is one count, each a pure function of comparisons with training pictures."""
