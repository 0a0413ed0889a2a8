"""The engine: watches the batches of any trainer, and imports none."""
