"""Lightning callbacks: the monitor, each mitigation, and the export of a pipeline. One file is one callback."""
