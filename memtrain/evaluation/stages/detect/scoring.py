"""Scoring of prompts, in parts that a killed detection and several processes share.

Prompts are scored in fixed groups that fill one batch, and each group's scores are written soon after
(`score_parts.py`). The prompts in question and the null prompts are two such tables, each with its own identity.
Prompts with scores for the same model, settings and detectors in this output folder are not scored again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

import memtrain
from memtrain.detectors.base import Detector
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.score_parts import ScoreParts
from memtrain.evaluation.stages.shards import Shard
from memtrain.files.progress import progress_bar


class Scoring:
    """One table of scores.

    Args:
        given: the pipeline, the settings of the sampling and the output folder.
        texts: the P different prompts.
        detectors: the detectors, each of which gives one score per prompt.
        model: the fingerprint of the pipeline.
        what: the name on the progress bar.

    Attributes:
        identity: everything that the scores depend on, in a form that JSON can hold.
        key: the name of the folder of the scores in `detection/` of the output folder.
    """

    def __init__(
        self,
        given: StageInput,
        texts: Sequence[str],
        detectors: Sequence[Detector],
        *,
        model: str,
        what: str = "scoring",
    ) -> None:
        self.given, self.texts, self.detectors, self.what = given, texts, detectors, what
        self.identity: dict[str, Any] = {
            "pipeline": model,
            "prompts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
            "detectors": [_configuration(detector) for detector in detectors],
            "sampling": {**given.sampling.said(), "batch_size": given.sampling.batch_size},
            "memtrain": memtrain.__version__,
        }
        names = [detector.name for detector in detectors]
        self._parts = ScoreParts(given.output / "detection", self.identity, detectors=names)
        self.key = self._parts.key

    def work(self, *, shard: Shard | None, part_seconds: float) -> bool:
        """Score this process's prompts; return whether all prompts now have scores, or `shard` is None.

        Args:
            shard: the share of the prompts; None for none.
            part_seconds: the largest number of seconds between two writes.
        """
        if shard is None:
            return True
        _score(
            self.given,
            self.texts,
            self.detectors,
            parts=self._parts,
            shard=shard,
            part_seconds=part_seconds,
            what=self.what,
        )
        return len(self._parts.done()) == len(self.texts)

    def table(self) -> pa.Table:
        """Return all scores in the order of prompts; :class:`memtrain.errors.RecordError` if some are missing."""
        return self._parts.merged(len(self.texts))


def _configuration(detector: Detector) -> dict[str, str]:
    """Return the settings that distinguish a detector from others."""
    kind = type(detector)
    settings = {name: repr(value) for name, value in sorted(vars(detector).items())}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "name": detector.name, **settings}


def _score(
    given: StageInput,
    prompts: Sequence[str],
    detectors: Sequence[Detector],
    *,
    parts: ScoreParts,
    shard: Shard,
    part_seconds: float,
    what: str,
) -> None:
    """Score this process's prompts that have no scores yet."""
    sampling, count = given.sampling, len(prompts)
    each = sampling.prompts_at_once
    groups = [range(start, min(start + each, count)) for start in range(0, count, each)]
    done = parts.done()
    own = groups[shard.index :: shard.count]
    left = [group for group in own if not done.issuperset(group)]
    total, scored = sum(map(len, own)), sum(map(len, own)) - sum(map(len, left))
    rows: list[dict[str, Any]] = []
    written = time.perf_counter()
    description = what if shard.count == 1 else f"{what}, part {shard}"
    with progress_bar(
        total=total, initial=scored, desc=description, unit="prompt", disable=not sampling.progress
    ) as bar:
        try:
            for group in left:
                start = time.perf_counter()
                texts = [prompts[row] for row in group]
                readings = read_prompts_with(given.pipeline, texts, detectors, sampling=sampling.quiet)
                scores = {detector.name: detector.score(readings[detector.name]).tolist() for detector in detectors}
                seconds = (time.perf_counter() - start) / len(group)
                rows += [
                    {"row": row, "seconds": seconds, **{name: values[at] for name, values in scores.items()}}
                    for at, row in enumerate(group)
                ]
                bar.update(len(group))
                if time.perf_counter() - written >= part_seconds:
                    parts.append(rows, shard=str(shard))
                    rows, written = [], time.perf_counter()
        finally:
            parts.append(rows, shard=str(shard))
