"""The search for neurons: whole, or a part of the prompts on each of many machines."""

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
    """How neurons are found.

    Attributes:
        settings: of NeMo's search.
        statistics: activations for other prompts, or a file of them, ours or NeMo's; default measured on half of the
            controls, or on random words.
        threshold: similarity between seeds above which a prompt counts as memorized; default as `statistics`.
        contribution: take this share of all neurons by :mod:`memtrain.localization.contribution` instead of NeMo's
            search, which then has no `statistics`; needs controls.
    """

    settings: Settings | None = None
    statistics: ActivationStatistics | Path | None = None
    threshold: Threshold | float | None = None
    contribution: float | None = None

    def known_statistics(self, given: StageInput) -> ActivationStatistics | None:
        """The statistics that are given, with the names of the model's layers.

        Raises:
            ConfigurationError: if a file of them is none, or does not fit the model.
        """
        if isinstance(self.statistics, Path):
            return read_statistics(self.statistics, Predictor.of(given.pipeline))
        return self.statistics


def find_neurons(given: StageInput, search: Search) -> tuple[Roles, Localization]:
    """Search all prompts but those that calibrate.

    Args:
        given: pipeline, prompts and output folder; what an earlier call found there is not searched again.
        search: how.

    Returns:
        What each prompt was there for, and what was found.

    Raises:
        ConfigurationError: if prompts are repeated (:func:`memtrain.evaluation.stages.roles.distinct`), none is left to
            search, or the folder holds another search.
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
    """Search this process's part of the prompts that `localize` searches.

    Args:
        given: pipeline, prompts and output folder, the same on every process.
        shard: `(i, n)`: every n-th prompt from the i-th on.
        search: how, but for contributions.

    Returns:
        What was found, and how many prompts of all parts are not searched yet.

    Raises:
        ConfigurationError: if none is left to search, nothing is calibrated yet, which several
            processes cannot do at once, or the folder holds another search.
    """
    search, folder = search or Search(), given.output / NEURONS
    prompts = [given.prompts[row] for row in distinct(given.prompts)]
    others, statistics = calibrated_on(folder), search.known_statistics(given)
    complete = statistics is not None and search.threshold is not None
    if others is None and not complete:
        raise ConfigurationError(
            f"{folder} holds no calibration for all parts of the prompts to compare with",
            expected="statistics and a threshold from `memtrain calibrate` with the same --output",
            remedy="run that first, or name both with --statistics and --threshold",
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
