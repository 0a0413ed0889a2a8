"""Where pieces of work run that do not depend on each other: here one after the other, or on Ray."""
