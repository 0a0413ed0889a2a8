"""What a data module may offer, and what is made of one that offers less.

Any loader will do (:mod:`memtrain.monitoring.batch_fields` says how its samples are named). Loaders that are given to
`trainer.fit(module, train, validation)` can be measured where their datasets are map-style; the validation samples are
the held-out ones (:mod:`memtrain.monitoring.loader_data`). A data module that offers more is recognised by what it
has, not by its class:

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

The first three lines together make data measurable (:func:`lacking_to_measure`). What has the name but not the form,
such as torchvision's `samples`, counts as unknown: records then hold keys alone.
:class:`memtrain.data.module.TextImageDataModule` has it all. Batches are moved as in training, through the hooks around
the transfer (`Host.moved`), while the trainer says that it validates, so that no hook
drops captions or augments images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from memtrain.errors import ConfigurationError
from memtrain.monitoring.host import Host
from memtrain.monitoring.loader_data import LoaderData


class KnownSample(Protocol):
    """A sample whose name and caption can be read without loading its image."""

    @property
    def key(self) -> str:
        """Names it for good."""

    @property
    def caption(self) -> str:
        """Its text."""


def known_samples(data: Any, split: str) -> Sequence[KnownSample]:
    """The samples of a data module's `split` (`train` or `heldout`), each once; empty if it does not say."""
    samples = getattr(getattr(data, f"{split}_dataset", None), "samples", None)
    if not isinstance(samples, Sequence) or isinstance(samples, str):
        return ()
    known = all(isinstance(getattr(one, name, None), str) for one in samples for name in ("key", "caption"))
    return samples if known else ()


def by_key(data: Any, name: str) -> Mapping[str, Any]:
    """`visits_per_epoch` or `groups` of a data module; empty if it has none."""
    found = getattr(data, name, None)
    return found if isinstance(found, Mapping) else {}


def lacking_to_measure(host: Host, *, training_samples: bool = True) -> list[str]:
    """What module and data lack of what measuring samples outside of training steps takes; empty if nothing.

    Args:
        host: with both.
        training_samples: whether training samples are to be measured, too, and not only held-out ones.
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
        ConfigurationError: if they cannot.
    """
    lacking = lacking_to_measure(host)
    if lacking:
        raise ConfigurationError(
            f"{needed_by} measures samples outside of training steps; missing for that: {', '.join(lacking)}",
            expected="a module with sample_loss(batch, timesteps, generator) and a data module with train_dataset, "
            "heldout_dataset, heldout_dataset.unique() and unique_dataloader(dataset), such as TextImageDataModule; or "
            "trainer.fit(module, train, validation) with one loader of a map-style dataset each",
            remedy="add what is missing (memtrain.monitoring.data_protocol says what it is), or set `reference: "
            "paired` or `reference: false` on MemorizationMonitor",
        )
