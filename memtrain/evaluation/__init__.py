"""What the trained model gives back: images from its training captions, whether they are copies, and a report.

- `sampling/`: from prompts to images, with detectors reading along;
- `measures/`: one file is one measure of copying or of quality, on images alone;
- `stages/`: one folder is one stage, a subcommand of `memtrain`; no stage imports another;
- `report/`: the page, a pure function of result files.
"""
