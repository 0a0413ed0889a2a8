"""From prompts to images, with detectors reading along."""
