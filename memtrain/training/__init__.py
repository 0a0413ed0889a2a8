"""LightningModules, the per-sample objective, and checkpoints that survive being killed."""
