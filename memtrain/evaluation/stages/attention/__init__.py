"""The stage `attention`: what text tokens receive while prompts are sampled."""
