"""The way from signal values to flags: the samples that stand out, and the promised rate.

The files in reading order, by the question that each file answers:

- `calibration.py`: how do values become flags? It holds the whole way, and the other files are its steps.
- `base_profile.py`: what values does a sample have under the base model? `content.py`: how is a sample recognised?
- `standardisation.py`: how does training change all images, and long captions?
- `running_means.py`: what do several visits say together? `growing_rows.py`, `visit_counts.py`, `reservoir.py`: how is
  this kept, counted and summed up for a million samples? `kept_arrays.py`: how is it kept in a checkpoint?
- `direction.py`: in which direction does memorization move each value, if canaries can show it?
- `thresholds.py`: how high do samples score that are not memorized? `thresholding.py`, `heldout_peaks.py`: how high do
  they score at any time?
- `bulk.py`: how high do ordinary training samples score?
- `promise.py`: which rate does this promise, and which rate was measured in simulation (`measured_rates.py`)?
- `flags.py`: what does a mitigation know about a batch?
- `evidence_table.py`, `verdict.py`: what does the run report, in figures and in sentences?
"""
