"""The report page: pure functions of result files."""
