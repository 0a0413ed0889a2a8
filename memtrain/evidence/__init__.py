"""From signal values to flags: base profile, running means, calibration, flags, evidence table, verdict."""
