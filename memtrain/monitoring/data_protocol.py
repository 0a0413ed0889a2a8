"""The optional attributes of a data module, and the checks for measuring its samples.

Every loader works (:mod:`memtrain.monitoring.batch_fields` names its samples). Loaders for `trainer.fit(module, train,
validation)` can be measured if their datasets are map-style. Their validation samples are the held-out samples
(:mod:`memtrain.monitoring.loader_data`). The attributes of a data module decide what it offers, not its class:

| attribute | what it is | what for |
|---|---|---|
| `train_dataset`, `heldout_dataset` | datasets of samples that are and are not trained on | measuring them |
| `unique_dataloader(dataset)` | batches of each sample of `dataset` once, in fixed order | the base model's profile |
| `train_dataset.contents`, `heldout_dataset.contents` | a name for what each sample holds, known without reading it; \
then `unique_dataloader(dataset, rows, part=(number, of))` yields some samples alone | a start that reads what the \
profile lacks |
| `train_dataset.unique()` | each training sample once, by its row among `samples` | `reference: first_visit` |
| `heldout_dataset.unique()` | a map-style dataset of each sample once, for torch's default collation | calibration |
| `….samples` | a list of objects with `key` and `caption`, both strings | captions in the records |
| `visits_per_epoch` | visits of each training sample, by key | the records |
| `families` | a :class:`memtrain.families.table.FamilyIndex`, or None | counting pictures in place of files |
| `groups` | group of each sample, by key; the samples of `canary` weight signals, those of \
`regularisation` are no substitutes | the records, `combined`, sample replacement |
| `copied_from` | key of the training sample that a held-out one is an edited copy of, by the copy's key | calibration |
| `heldout_dataset.unique().prompt_lengths` | tokens of each caption | calibration by length of caption |
| `heldout_dataset.unique().shapes`, `train_dataset.unique().shapes` | a shape of each sample; equal ones fit into one \
batch | calibration and substitutes, where samples differ in size |

The first three lines together make data measurable (:func:`lacking_to_measure`). An attribute with the right name but
another form, such as torchvision's `samples`, counts as unknown. Records then hold keys only.
:class:`memtrain.data.module.TextImageDataModule` has all attributes. Batches are moved as in training, through the
hooks around the transfer (`Host.moved`). Meanwhile the trainer says that it validates, so that no hook drops captions
or augments images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from memtrain.errors import ConfigurationError
from memtrain.monitoring.host import Host
from memtrain.monitoring.loader_data import LoaderData


class KnownSample(Protocol):
    """A sample with a name and a caption that can be read without its image."""

    @property
    def key(self) -> str:
        """The permanent name of the sample."""

    @property
    def caption(self) -> str:
        """The caption of the sample."""


def known_samples(data: Any, split: str) -> Sequence[KnownSample]:
    """Return the samples of a data module's `split` (`train` or `heldout`), each once; empty if unknown."""
    samples = getattr(getattr(data, f"{split}_dataset", None), "samples", None)
    if not isinstance(samples, Sequence) or isinstance(samples, str):
        return ()
    known = all(isinstance(getattr(one, name, None), str) for one in samples for name in ("key", "caption"))
    return samples if known else ()


def by_key(data: Any, name: str) -> Mapping[str, Any]:
    """Return `visits_per_epoch` or `groups` of a data module; empty if it has none."""
    found = getattr(data, name, None)
    return found if isinstance(found, Mapping) else {}


def lacking_to_measure(host: Host, *, training_samples: bool = True) -> list[str]:
    """List the missing attributes of module and data for measuring samples outside of training steps.

    Args:
        host: the host with module and data.
        training_samples: whether training samples are measured too, and not only held-out samples.
    """
    module, data = host.module, host.data
    lacking = []
    if not callable(getattr(module, "sample_loss", None)):
        lacking.append(f"{type(module).__name__}.sample_loss(batch, timesteps, generator)")
    if data is None:
        return [*lacking, "a data module, or loaders given to trainer.fit"]
    if isinstance(data, LoaderData):
        loaders = {"training": data.train_dataset} if training_samples else {}
        loaders["validation"] = data.heldout_dataset
        return lacking + [
            f"one {name} loader with a map-style dataset" for name, part in loaders.items() if part is None
        ]
    name = type(data).__name__
    parts = ("train_dataset", "heldout_dataset") if training_samples else ("heldout_dataset",)
    lacking += [f"{name}.{part}" for part in parts if getattr(data, part, None) is None]
    if training_samples and not callable(getattr(data, "unique_dataloader", None)):
        lacking.append(f"{name}.unique_dataloader(dataset)")
    held = getattr(data, "heldout_dataset", None)
    if held is not None and not callable(getattr(held, "unique", None)):
        lacking.append(f"{name}.heldout_dataset.unique()")
    return lacking


def require_measurable(host: Host, *, needed_by: str) -> None:
    """Refuse a module or data that cannot be measured outside of training steps.

    Raises:
        ConfigurationError: if they cannot be measured.
    """
    lacking = lacking_to_measure(host)
    if lacking:
        raise ConfigurationError(
            f"{needed_by} measures samples outside of training steps, and needs what is missing: {', '.join(lacking)}",
            expected="a module with sample_loss(batch, timesteps, generator) and a data module with train_dataset, "
            "heldout_dataset, heldout_dataset.unique() and unique_dataloader(dataset), such as TextImageDataModule, or "
            "trainer.fit(module, train, validation) with one loader of a map-style dataset each",
            remedy="add the missing parts (see memtrain.monitoring.data_protocol), or set `reference: paired` or "
            "`reference: false` on MemorizationMonitor",
        )
