"""Neuron masking: value neurons that stand out for flagged samples are off while these samples train.

Source: NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in Diffusion Models",
NeurIPS 2024), a method for finished models. Its first stage finds neurons whose activation for a caption is unusual,
and this callback uses it in training (:mod:`memtrain.models.neuron_search`). NeMo then drops most candidates with many
forward passes, which are too slow for a training step. So only the few most unusual neurons are taken.

The neurons of all flagged pictures form one mask. The neurons of a picture are found from its first file in a batch. In
training forwards, the mask is on for the rows of flagged samples, which are all files of a flagged picture or caption.
The gradient of these rows neither passes through these neurons nor changes them, and other rows keep the same bits.
Profile, held-out samples, validation and sampling run unmasked during training. In the end the mask goes to
`neuron_mask.safetensors` in the run folder and, with `export: bake`, into the exported pipeline.

Cost: an average over the values of each site and step, copied to the host in the background, and two exchanges between
processes at the monitor's updates. Suggested: `neurons: 4`, the number that NeMo keeps for a verbatim copy (4 ± 3, of
26.5 candidates). Alone, it acts on later visits of a flagged sample. With sample skipping, it acts on the exported
pipeline only. On the embedded default it stops nothing and raises the held-out loss by 20 % (benchmarks/RESULTS.md).

Cannot: make the model forget. Masking hides the image that a caption triggers, and an embedding from a search brings it
back ("Finding DoRI", arXiv 2507.16880). In the exported pipeline, the neurons of every flagged sample are off for all
captions, so the method suits few flagged samples. The neurons belong to the caption of the visit. So visits with a
dropped caption are left out, and caption augmentation is refused. A resumed run goes on exactly on one process. With
several processes, the first one writes the checkpoint, and the others' visits since the monitor's last update are read
again later. Adapters on value projections need `export: file`. FSDP2 was not tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.callbacks.pipeline_export import warn_unless_exported
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.functional.neurons import neuron_activation, scale_neurons
from memtrain.models.backbones.base import Backbone, unwrap
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.neuron_search import NeuronSearch
from memtrain.models.transfer import to_device
from memtrain.models.value_hooks import ValueHooks
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Effects

log = logging.getLogger(__name__)


class NeuronMasking(MitigationCallback):
    """Mask value neurons of flagged samples.

    Args:
        mask: file of a :class:`~memtrain.models.neuron_mask.NeuronMask`, whose neurons are masked from the start. Its
            factor then holds for all neurons.
        neurons: number of neurons to find for each flagged picture over all sites; 0 finds none.
        sites: glob over the attention sites that are searched (`*` for all); default the backbone's subset.
        samples: mask training rows of `flagged` samples or of `all`.
        export: `bake` the mask into the exported pipeline, or write the `file` only.
    """

    def __init__(
        self,
        mask: str | None = None,
        *,
        neurons: int = 4,
        sites: str | None = None,
        samples: Literal["flagged", "all"] = "flagged",
        export: Literal["bake", "file"] = "bake",
    ) -> None:
        if neurons < 0 or (mask is None and neurons == 0):
            raise ConfigurationError(
                f"neurons={neurons} and mask={mask}",
                expected="neurons to find, or a mask",
                remedy="set neurons or mask",
            )
        self.listed = None if mask is None else NeuronMask.load(Path(mask))
        self.neurons, self.sites, self.samples, self.export = neurons, sites, samples, export
        self.mask = self.listed
        self._hooks: ValueHooks | None = None
        self._state: dict[str, Any] = {}

    def effects(self) -> Effects:
        """State that rows are masked in training only, and that the search for neurons acts on flagged samples."""
        return Effects(
            edits_training=True,
            changes_batch=True,
            reads_captions=True,
            flagged_only=self.samples == "flagged" or self.neurons > 0,
        )

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: Any) -> None:
        """Add the hooks, and load the state of a checkpoint.

        Raises:
            ConfigurationError: if the mask could not be exported, or if a resumed run has other sites.
            ProbeError: if a site cannot be masked.
        """
        inner = unwrap(denoiser)
        searched = backbone.select_sites(inner, self.sites) if self.neurons else {}
        listed = {} if self.listed is None else self.listed.sites(denoiser)
        hooks = ValueHooks(denoiser, searched | listed, backbone=backbone, edit=self._edit)
        layers: dict[str, Any] = {site: hooks.layer(site) for site in hooks.sites}
        adapted = [site for site, layer in layers.items() if type(layer) is not nn.Linear]
        if adapted and self.export == "bake":
            raise ConfigurationError(
                f"The value projections of {len(adapted)} of {len(layers)} sites are no plain linear layers, first "
                f"{adapted[0]!r}, so a mask cannot be baked into them",
                expected="torch.nn.Linear",
                remedy="set `export: file`, and use the file with NeuronMask",
            )
        # The saved state is used once, so a second fit with the same callback starts without it.
        state, self._state = self._state, {}
        if state and state["sites"] != list(searched):
            raise ConfigurationError(
                f"The checkpoint searched the sites {state['sites']}",
                expected=f"the sites of this run: {list(searched)}",
                remedy="set the same `sites` as the run that wrote the checkpoint",
            )
        self._module, self._hooks, self._searched = module, hooks, list(searched)
        self._neurons = [(site, channel) for site in searched for channel in range(layers[site].out_features)]
        self._search = NeuronSearch(len(self._neurons), count=self.neurons, rank=module.global_rank)
        if state:
            self._search.load_state_dict(state)
        self._wanted: list[tuple[int, str, bool]] = []
        self._activation: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        self._build()
        hooks.attach()

    def detach(self) -> None:
        """Remove the hooks."""
        if self._hooks is not None:
            self._hooks.detach()

    def _build(self) -> None:
        """Build the mask and its factors on the device, from the listed and the found neurons."""
        assert self._hooks is not None
        channels: dict[str, list[int]] = {}
        for neuron in {neuron for neurons in self._search.found.values() for neuron in neurons}:
            site, channel = self._neurons[neuron]
            channels.setdefault(site, []).append(channel)
        self.mask = self.listed
        if channels:
            found = NeuronMask(channels)
            self.mask = found if self.listed is None else self.listed | found
        self._scales: dict[str, Tensor] = {}
        if self.mask is not None:
            for site in self.mask.channels:
                self._scales[site] = self.mask.scale(site, self._hooks.layer(site)).to(self._module.device)

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Choose the rows to mask, and the rows whose activation is needed."""
        masked = torch.ones_like(flags.ever) if self.samples == "all" else flags.ever
        some = self.mask is not None and bool(masked.any())
        self._rows = to_device(masked, self._module.device) if some else None
        self._number, self._wanted = number, []
        if self.neurons:
            wanted = self._search.wanted(flags.pictures, flags.ever.tolist(), epoch=self._module.current_epoch)
            # A dropped caption is the empty caption, which says nothing about the sample.
            captions: Any = batch.get("caption")
            if not isinstance(captions, list | tuple):
                # A host may keep another value under this name, or none.
                captions = [None] * len(flags.keys)
            self._wanted = [sample for sample in wanted if captions[sample[0]] != ""]

    def _edit(self, site: str, values: Tensor) -> Tensor:
        assert self._hooks is not None
        if not self._hooks.training:
            return values
        if self._wanted and site in self._searched:
            self._activation[site] = neuron_activation(values.detach())
        if self._rows is None or site not in self._scales:
            return values
        return scale_neurons(values, self._scales[site], rows=self._rows)

    def forward_done(self, host: Host) -> None:
        """Raise an error if the forward did not pass every site, and keep its activations."""
        assert self._hooks is not None
        self._hooks.require_reached()
        if self._wanted:
            activation = torch.cat([self._activation[site] for site in self._searched], dim=1)
            self._search.add(self._wanted, activation, number=self._number, epoch=host.epoch)
            # Gradient checkpointing computes some activations twice, and they are read once.
            self._wanted = []

    def synchronize(self, gather: Callable[[Any], list[Any]]) -> None:
        """Find the neurons of newly flagged samples, the same on every process."""
        if self.neurons and self._search.synchronize(gather):
            self._build()

    def finish(self, host: Host) -> None:
        """Write the mask into the run folder."""
        if host.rank != 0:
            return
        path = host.folder / "neuron_mask.safetensors"
        if self.mask is not None:
            self.mask.save(path)
            log.info("%d neurons of %d pictures are masked: %s", len(self.mask), len(self._search.found), path)
            if self.export == "bake":
                warn_unless_exported(host, path)
        else:
            # A file from an earlier run does not belong to this run.
            path.unlink(missing_ok=True)
            log.warning("No neurons were found, so the pipeline is exported without a mask and without %s", path.name)

    def exporting(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the mask is in the weights, unless only a file is exported."""
        return self.mask.baked(denoiser) if self.mask is not None and self.export == "bake" else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the neurons found so far, and the state of the search."""
        return self._state if self._hooks is None else {"sites": self._searched, **self._search.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a saved state until training starts."""
        self._state = state_dict
