"""Search for neurons: all prompts, or a share of them on each of many machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.roles import NEURONS, Roles, distinct
from memtrain.localization.authors_files import read_statistics
from memtrain.localization.calibration import calibrated_on, kept_calibration, require_same_model
from memtrain.localization.contribution import EVERY_SITE, locate_contributions
from memtrain.localization.locate import locate
from memtrain.localization.predictor import Predictor
from memtrain.localization.results import Localization, read_known
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import Threshold


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of a search for neurons.

    Attributes:
        settings: the settings of NeMo's search.
        statistics: the activation statistics of other prompts, or their file, in memtrain's or NeMo's format. By
            default they are measured on half of the controls, or on random words.
        threshold: the similarity between seeds above which a prompt counts as memorized; measured like `statistics` by
            default.
        contribution: the share of all neurons to take by :mod:`memtrain.localization.contribution`, in place of NeMo's
            search and without `statistics`; it needs controls. None for NeMo's search.
    """

    settings: Settings | None = None
    statistics: ActivationStatistics | Path | None = None
    threshold: Threshold | float | None = None
    contribution: float | None = None

    def known_statistics(self, given: StageInput) -> ActivationStatistics | None:
        """Return the given statistics, with the names of the model's layers.

        Raises:
            ConfigurationError: if their file holds no statistics, or does not fit the model.
        """
        if isinstance(self.statistics, Path):
            return read_statistics(self.statistics, Predictor.of(given.pipeline))
        return self.statistics


def find_neurons(given: StageInput, search: Search) -> tuple[Roles, Localization]:
    """Search all prompts except the calibrating ones.

    Args:
        given: the pipeline, the prompts and the output folder; prompts with results there are not searched again.
        search: the settings of the search.

    Returns:
        The roles of the prompts, and the results.

    Raises:
        ConfigurationError: if prompts are repeated (:func:`memtrain.evaluation.stages.roles.distinct`), there are no
            prompts to search, or the folder holds another search.
    """
    folder, prompts = given.output / NEURONS, given.prompts
    roles, statistics = Roles.of(prompts), search.known_statistics(given)
    kept = calibrated_on(folder)
    if statistics is not None and search.threshold is not None:
        roles = roles.calibrated_on(prompts, ())
    elif kept is not None:
        roles = roles.calibrated_on(prompts, set(kept))
    searched, others = ([prompts[row].text for row in rows] for rows in (roles.searched, roles.calibrating))
    if search.contribution is None:
        return roles, locate(
            given.pipeline,
            searched,
            statistics=statistics,
            threshold=search.threshold,
            other_prompts=None if kept is not None else others or None,
            settings=search.settings,
            output=folder,
            progress=given.sampling.progress,
        )
    calibration, threshold = kept_calibration(folder), search.threshold
    settings = search.settings or Settings()
    if calibration is not None:
        require_same_model(calibration[0], Predictor.of(given.pipeline, steps=settings.steps), folder)
        threshold = calibration[1] if threshold is None else threshold
    return roles, locate_contributions(
        given.pipeline,
        searched,
        other_prompts=kept or others,
        share=search.contribution,
        threshold=threshold,
        sites=settings.sites or EVERY_SITE,
        settings=settings,
    )


def search_part(given: StageInput, *, shard: tuple[int, int], search: Search | None = None) -> tuple[Localization, int]:
    """Search this process's share of the prompts that `localize` searches.

    Args:
        given: the pipeline, the prompts and the output folder, the same on every process.
        shard: the pair `(i, n)`, for every n-th prompt from the i-th.
        search: the settings of the search, without contributions.

    Returns:
        The results, and the number of prompts of all shares that are not searched yet.

    Raises:
        ConfigurationError: if there are no prompts to search, there is no calibration yet (several processes cannot
            calibrate together), or the folder holds another search.
    """
    search, folder = search or Search(), given.output / NEURONS
    prompts = [given.prompts[row] for row in distinct(given.prompts)]
    others, statistics = calibrated_on(folder), search.known_statistics(given)
    complete = statistics is not None and search.threshold is not None
    if others is None and not complete:
        raise ConfigurationError(
            f"{folder} holds no calibration for the shares of the prompts",
            expected="statistics and a threshold from `memtrain calibrate` with the same --output",
            remedy="run `memtrain calibrate` first, or name both with --statistics and --threshold",
        )
    roles = Roles.of(prompts).calibrated_on(prompts, () if complete else set(others or ()))
    texts = [prompts[row].text for row in roles.searched]
    found = locate(
        given.pipeline,
        texts,
        statistics=statistics,
        threshold=search.threshold,
        settings=search.settings,
        output=folder,
        shard=shard,
        progress=given.sampling.progress,
    )
    return found, len(set(texts)) - len(read_known(folder, texts))
