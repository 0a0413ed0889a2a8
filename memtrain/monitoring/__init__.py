"""The engine, which watches the batches of any trainer and imports no trainer."""
