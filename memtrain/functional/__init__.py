"""Pure tensor maths, with torch and torchmetrics only. Every formula has its source.

Shape glossary, used in every docstring of the project:

| letter | meaning |
|---|---|
| B | samples in a batch |
| H | attention heads |
| N | image tokens (pixels of a feature map) |
| T | text tokens, padding included |
| D | channels of a head |
| C, h, w | channels, height and width of latents |
| S | attention sites |
| K | seeds or images per prompt |
"""
