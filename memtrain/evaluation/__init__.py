"""Evaluation of a trained model: images from its training captions, a test whether they are copies, and a report.

- `sampling/`: from prompts to images, read by detectors;
- `measures/`: one file is one measure of copying or of quality, on images alone;
- `stages/`: one folder is one stage, a subcommand of `memtrain`; no stage imports another;
- `report/`: the page, a pure function of result files.
"""
