"""What the prompts of an evaluation are compared with: own pictures, training pictures, and what is known of them."""

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
    """What a run's prompts are compared with.

    Attributes:
        prompts: P prompts with distinct keys; held-out ones are needed for the threshold.
        own_images: `(P, 3, H, W)` uint8, the image of each prompt.
        training_images: `(M, 3, H, W)` uint8, every training image once, or the part of them that is compared with.
        training_keys: M keys.
        part: where training images are too many (:mod:`memtrain.evaluation.stages.many_images`), the part that
            `training_images` are.
        features: where the features of training images are kept; None to compute them in every evaluation.
        families: which images are one picture, and which share a caption. The files of a picture are compared as one
            image and counted as one. None if nobody has looked; then nothing is cleared.
        templates: what a made training image is a variant of, by key; variants are one picture, too.
        not_looked_at: training images that `families` does not know.
        population: training pictures of each group, asked or not; of `shared_caption`, captions. None where not known.
        heldout_left_out: held-out images that are not asked for because the run trained on the same picture.
        visits: visits per epoch of training images, by key; where planted ones differ, results say so per dose.
        evidence: the run's `records/evidence.parquet`, if it was monitored.
        heldout: all held-out images `(n, 3, H, W)` uint8 and their captions, for the denoising loss; None for no loss.
        grouped_by: what a column of the data says of images, such as the patient or artist, by key; None if not asked.
        canaries: that the run planted, for their exposure; None to leave it out.
        borders: the same of borders of a secret level.
        config: anything that says where the pipeline comes from; stored as it is.
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
        """Of all training images, compared with or not."""
        return self.training_keys if self.part is None else self.part.keys

    @property
    def usual_images(self) -> Tensor:
        """Training images as they usually are: all, or the random choice in the part that is compared with."""
        return self.training_images if self.part is None else self.training_images[self.part.random_places]

    def with_candidates(self, generated: Tensor, store: Path) -> RunSamples:
        """The same with the nearest training images of generations `(P, K, 3, H, W)`, where not all are there."""
        if self.part is None:
            return self
        part = self.part.with_candidates(generated, store)
        print(f"{part.line()}.")
        features = FeaturesFolder(store / "features", part.name)
        return replace(self, part=part, training_images=part.images, training_keys=part.part_keys, features=features)

    def picture(self, key: str) -> str:
        """Name of the picture family of an image, trained on or not."""
        return picture_of(key, self.families, self.templates or {})

    def caption(self, key: str) -> str:
        """Name of the caption family of an image, trained on or not."""
        return self.families.caption(key) if self.families is not None else key


def picture_of(key: str, families: Families | None, templates: Mapping[str, str]) -> str:
    """Name of an image's picture family; a variant of a template belongs to that of the template."""
    origin = templates.get(key, key)
    return families.picture(origin) if families is not None else origin


class Run(Protocol):
    """What a model is asked about: a finished training run, read again, or a folder of pictures.

    :class:`memtrain.cli.run_folder.FinishedRun` and :class:`memtrain.cli.picture_folder.PictureFolder` are such.
    """

    def at(self, pipeline: Any) -> Run:
        """The same at the size at which the pipeline samples, where nothing else says it."""

    def known_prompts(self, *, most: int) -> tuple[list[PromptToScore], Tensor]:
        """Captions of planted and of held-out images, and their images `(P, 3, H, W)`."""

    def samples(
        self,
        *,
        most: int,
        unique: int,
        group_by: str | None = None,
        store: Path | None = None,
        bounds: Bounds | None = None,
    ) -> RunSamples:
        """Prompts of every group, what they are compared with, and a column of the data.

        Args:
            most: pictures of each group at most.
            unique: of those that were trained on once per epoch.
            group_by: the column.
            store: folder for training images that are too many for memory; None keeps them in memory.
            bounds: of how many training images all are compared with, and where the index of more lies.
        """
