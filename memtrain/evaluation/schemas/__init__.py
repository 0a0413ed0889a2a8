"""JSON Schemas of the results files; read by :mod:`memtrain.evaluation.stages.results_file`."""
