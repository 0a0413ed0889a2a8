"""From signal values to flags: which samples stand out, and what that promises.

In reading order, by the question that each file answers:

- `calibration.py`: how do values become flags? The whole way; the others are its steps.
- `base_profile.py`: what does a sample look like under the base model? `content.py`: by what is it known again?
- `standardisation.py`: what does training do to every image, and to long captions?
- `running_means.py`: what do several visits say together? `growing_rows.py`, `visit_counts.py`, `reservoir.py`: and how
  is it kept, counted and summed up for a million samples? `kept_arrays.py`: in a checkpoint?
- `direction.py`: which way does memorization move each value, where canaries can teach it?
- `thresholds.py`: how high do samples score that are not memorized? `thresholding.py`, `heldout_peaks.py`: at any time?
- `bulk.py`: and those that are trained on as often as most?
- `promise.py`: which rate is promised by that, and which was measured in simulation (`measured_rates.py`)?
- `flags.py`: what does a mitigation get to know of a batch?
- `evidence_table.py`, `verdict.py`: what does the run leave for a reader, in figures and in sentences?
"""
