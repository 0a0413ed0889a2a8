"""Samples of an evaluation: prompts, their own pictures, training pictures, and facts about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from torch import Tensor

from memtrain.evaluation.stages.kept_features import FeaturesFolder
from memtrain.evaluation.stages.many_images import Bounds, ComparedPart
from memtrain.evaluation.stages.prompts import Prompt, PromptToScore
from memtrain.evaluation.stages.secrets import BorderSecrets, CanarySecrets
from memtrain.families.table import Families


@dataclass(frozen=True, kw_only=True)
class RunSamples:
    """Prompts of a run, and the images that their generations are compared with.

    Attributes:
        prompts: the P prompts with distinct keys; held-out prompts are needed for the threshold.
        own_images: the image of each prompt, `(P, 3, H, W)` uint8.
        training_images: every training image once, or the compared part of them, `(M, 3, H, W)` uint8.
        training_keys: the M keys of these images.
        part: the compared part, if there are too many training images
            (:mod:`memtrain.evaluation.stages.many_images`).
        features: the folder for features of training images; None to compute them in every evaluation.
        families: the table of images that show one picture, and of images with one caption. The files of a picture
            count as one image. None if the data were not scanned; the model is then not cleared.
        templates: the origin of each made training image, by key; variants of an origin are one picture.
        not_looked_at: the number of training images that `families` lacks.
        population: the number of training pictures of each group, sampled or not (captions for `shared_caption`); None
            if it is not known.
        heldout_left_out: the number of held-out images that are left out because the run trained on the same picture.
        visits: the visits per epoch of training images, by key; with several numbers, results have figures for each.
        evidence: the table `records/evidence.parquet` of a monitored run.
        heldout: all held-out images `(n, 3, H, W)` uint8 with their captions, for the denoising loss; None for no loss.
        grouped_by: the values of a column of the data, such as the patient or artist, by key; None for no column.
        canaries: the canaries that the run planted, for their exposure; None to leave it out.
        borders: the borders with secret levels that the run planted; None to leave them out.
        config: the settings and origin of the pipeline; stored without changes.
    """

    prompts: Sequence[Prompt]
    own_images: Tensor
    training_images: Tensor
    training_keys: Sequence[str]
    part: ComparedPart | None = None
    features: FeaturesFolder | None = None
    families: Families | None = None
    templates: Mapping[str, str] | None = None
    not_looked_at: int = 0
    population: Mapping[str, int] | None = None
    heldout_left_out: int = 0
    visits: Mapping[str, int] | None = None
    evidence: pa.Table | None = None
    heldout: tuple[Tensor, list[str]] | None = None
    grouped_by: Mapping[str, str] | None = None
    canaries: CanarySecrets | None = None
    borders: BorderSecrets | None = None
    config: Mapping[str, Any] | None = None

    @property
    def every_key(self) -> Sequence[str]:
        """Keys of all training images, compared or not."""
        return self.training_keys if self.part is None else self.part.keys

    @property
    def usual_images(self) -> Tensor:
        """Typical training images: all of them, or the random choice in the compared part."""
        return self.training_images if self.part is None else self.training_images[self.part.random_places]

    def with_candidates(self, generated: Tensor, store: Path) -> RunSamples:
        """Add the nearest training images of generations `(P, K, 3, H, W)`, if only a part is compared."""
        if self.part is None:
            return self
        part = self.part.with_candidates(generated, store)
        print(f"{part.line()}.")
        features = FeaturesFolder(store / "features", part.name)
        return replace(self, part=part, training_images=part.images, training_keys=part.part_keys, features=features)

    def picture(self, key: str) -> str:
        """Return the name of an image's picture family, trained on or not."""
        return picture_of(key, self.families, self.templates or {})

    def caption(self, key: str) -> str:
        """Return the name of an image's caption family, trained on or not."""
        return self.families.caption(key) if self.families is not None else key


def picture_of(key: str, families: Families | None, templates: Mapping[str, str]) -> str:
    """Return the name of an image's picture family; a variant belongs to the family of its template."""
    origin = templates.get(key, key)
    return families.picture(origin) if families is not None else origin


class Run(Protocol):
    """Source of the samples of an evaluation: a finished training run, or a folder of pictures.

    :class:`memtrain.cli.run_folder.FinishedRun` and :class:`memtrain.cli.picture_folder.PictureFolder` implement it.
    """

    def at(self, pipeline: Any) -> Run:
        """Return the source at the pipeline's sampling size, if no other size is set."""

    def known_prompts(self, *, most: int) -> tuple[list[PromptToScore], Tensor]:
        """Return the captions of planted and of held-out images, with their images `(P, 3, H, W)`."""

    def samples(
        self,
        *,
        most: int,
        unique: int,
        group_by: str | None = None,
        store: Path | None = None,
        bounds: Bounds | None = None,
    ) -> RunSamples:
        """Return prompts of every group, their images, and a column of the data.

        Args:
            most: the largest number of pictures of each group.
            unique: the largest number of pictures that were trained on once per epoch.
            group_by: the column of the data.
            store: the folder for training images that do not fit in memory; None keeps them in memory.
            bounds: the limit up to which all training images are compared, and the folder of the index for more.
        """
