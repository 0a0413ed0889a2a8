"""What the trained model gives back: images from its training captions, whether they are copies, and a report.

:func:`~memtrain.evaluation.runner.evaluate_run` is the way through: sample images for prompts of several groups
(:mod:`~memtrain.evaluation.generate`), measure how close each comes to its own training image
(:mod:`~memtrain.evaluation.replication`), compare detectors and the training record with what was planted
(:mod:`~memtrain.evaluation.summary`, :mod:`~memtrain.evaluation.training_record`), and write `results.json`,
`samples.parquet`, `images/` and `report.html` (:mod:`~memtrain.evaluation.report`).
"""
