"""Detectors: does the finished model memorize this prompt? Each file holds one detector.

A detector is a :class:`~memtrain.detectors.base.Detector` subclass. It reads the denoiser's predictions while
:func:`memtrain.evaluation.sampling.generate.generate` samples images, so several detectors share the cost of one
sampling.
"""
