"""Engines for pieces of work that do not depend on each other: one after the other here, or on Ray."""
