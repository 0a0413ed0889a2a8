"""Memorization sinks: reserved value neurons learn what is specific to a sample, and are removed in the end.

The method follows the memorization sinks of language models (Ghosal et al., "Memorization Sinks: Isolating Memorization
during LLM Training", ICML 2025, arXiv 2507.09937). There, hidden neurons of the MLPs are reserved, and a sequence
always switches on the same few of them. Here the neurons are output channels of the value projections, which see the
text only. The identifier is the name of the sample's picture, or the key of the sample if its picture has one file.

In a training forward, each sample switches on its own subset of the pool (`active`), and the other neurons of the pool
are off. In all other forwards, such as held-out measurements, validation and sampling, the whole pool is off from the
first step on. The exported pipeline does not have the pool. If `PipelineExport` cannot export a module, apply
`memorization_sinks.safetensors`, a NeuronMask in the run folder, before you save it. A pool starts empty, because its
value rows are set to zero before the reference profile is measured. So the sinks change no sample's loss at the start,
and later gains over the base model come from training.

At each site, the pool holds the neurons with the smallest product of two norms: the norm of their value row and the
norm of their column in the output projection. This product bounds the contribution of a neuron to the residual stream
for a text of unit norm.

Cost: a hash per sample and a multiplication per site and step. The base model also loses its pool at once. With pools
of 0.05, 0.1, 0.2 and 0.5 off, the loss of `assets/tiny-sd` rises by 0.1, 0.2, 0.5 and 1.8 % on its training images (by
0.5 % for 0.1 of the neurons at random). On held-out emoji, where its captions help little, the loss falls by 0.4, 0.6,
0.9 and 2.6 %. Each figure is from 128 images and 8 timesteps (`memtrain.evaluation.measures.heldout_loss`, NeuronMask).
Training goes on without the pool.

Suggested: `pool: 0.1`, `active: 0.25`. A sample then has 2 of the 96 neurons of a site in tiny-sd, and 32 of the 1,280
in SD 1.5. On the embedded default the sinks stop nothing. With and without them, 10 of 10 planted images are
reproduced, and the held-out loss is the same (one seed, benchmarks/RESULTS.md).

Cannot: keep memorization out of the shared neurons, whose gradient is not blocked, or out of convolutions and
self-attention. Without families, a picture that is repeated under other keys fills other sinks, and the shared neurons
learn what these files have in common. The monitor watches training forwards with the sample's sink on. A flag may
therefore come from neurons that are removed in the end, so evaluate the exported pipeline. Value projections must be
plain linear layers that train. Adapters are refused, because a file of adapters cannot remove the pool. FSDP2 was not
tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.callbacks.pipeline_export import warn_unless_exported
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.backbones.base import Backbone, unwrap
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.transfer import to_device
from memtrain.models.value_hooks import ValueHooks
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Effects


class MemorizationSinks(MitigationCallback):
    """Give every sample a few value neurons, and remove all of these neurons in the end.

    Args:
        pool: share of each site's neurons that is reserved.
        active: share of the pool that a sample switches on.
        sites: glob over attention sites (`*` for all); default the backbone's subset.
        seed: seed of the samples' subsets.
    """

    def __init__(
        self,
        pool: float = 0.1,
        *,
        active: float = 0.25,
        sites: str | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < pool < 1 or not 0 < active <= 1:
            raise ConfigurationError(
                f"pool={pool}, active={active}",
                expected="a pool above 0 and below 1, an active share above 0 up to 1",
                remedy="set such values, for instance pool 0.1 and active 0.25",
            )
        self.share, self.active, self.sites = pool, active, sites
        self.seed = seed
        self.pool: NeuronMask | None = None
        self._on: dict[str, Tensor] = {}
        self._hooks: ValueHooks | None = None
        self._state: dict[str, Any] = {}

    def effects(self) -> Effects:
        """State that training forwards run with sinks and other forwards without them."""
        return Effects(edits_training=True, changes_batch=True)

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: Any) -> None:
        """Choose and empty the pool, unless the run is resumed, and switch it off.

        Raises:
            ConfigurationError: if a value projection does not train, or if a resumed run has other sites.
            ProbeError: if a site cannot have sinks.
        """
        sites = backbone.select_sites(unwrap(denoiser), self.sites)
        self._hooks = ValueHooks(denoiser, sites, backbone=backbone, edit=self._edit)
        layers: dict[str, Any] = {site: self._hooks.layer(site) for site in sites}
        frozen = [site for site, layer in layers.items() if not all(p.requires_grad for p in layer.parameters())]
        if frozen:
            raise ConfigurationError(
                f"The value projections of {len(frozen)} of {len(sites)} sites do not train, first {frozen[0]!r}",
                expected="value projections that train",
                remedy="train them, set other `sites`, or remove MemorizationSinks",
            )
        # The saved state is used once, so a second fit with the same callback starts without it.
        state, self._state = self._state, {}
        if state and set(state["pool"]) != set(sites):
            raise ConfigurationError(
                f"The checkpoint has sinks at {sorted(state['pool'])}",
                expected=f"the sites of this run: {sorted(sites)}",
                remedy="set the same `sites` as the run that wrote the checkpoint",
            )
        pool = state.get("pool") or {site: cheapest(sites[site], layers[site], self.share) for site in sites}
        self.pool = NeuronMask(pool)
        if not state:
            self.pool.bake(denoiser)
        self._off = {site: self.pool.scale(site, layers[site]).to(module.device) for site in sites}
        self._module = module
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks."""
        if self._hooks is not None:
            self._hooks.detach()
        self._on = {}

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Look up the neurons that the samples of the batch switch on."""
        assert self.pool is not None
        pools = self.pool.channels
        sizes = [len(pool) for pool in pools.values()]
        sinks = [sink(key, sizes, active=self.active, seed=self.seed) for key in flags.pictures]
        chosen = torch.stack(sinks) if sinks else torch.zeros(0, sum(sizes), dtype=torch.bool)
        factors = []
        for (site, pool), part in zip(pools.items(), chosen.split(sizes, dim=1), strict=True):
            on = torch.ones(len(chosen), len(self._off[site]), dtype=torch.bool)
            on[:, pool] = part
            factors.append(on)
        # This makes one copy to the device instead of one per site.
        whole = to_device(torch.cat(factors, dim=1), self._module.device)
        self._on = dict(zip(pools, whole.split([on.shape[1] for on in factors], dim=1), strict=True))

    def forward_done(self, host: Host) -> None:
        """Raise an error if the forward did not pass every site."""
        assert self._hooks is not None
        self._hooks.require_reached()

    def _edit(self, site: str, values: Tensor) -> Tensor:
        assert self._hooks is not None
        if self._hooks.training and self._on:
            return values * self._on[site][:, None].to(values)
        return values * self._off[site].to(values)

    def finish(self, host: Host) -> None:
        """Write the pool to the run folder, and warn if no callback exports the pipeline without the pool."""
        assert self.pool is not None
        if host.rank == 0:
            path = host.folder / "memorization_sinks.safetensors"
            self.pool.save(path)
            warn_unless_exported(host, path)

    def exporting(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the pool's weights are zero."""
        assert self.pool is not None
        return self.pool.baked(denoiser)

    def state_dict(self) -> dict[str, Any]:
        """Return the pool, which the trained weights alone do not identify."""
        return self._state if self.pool is None else {"pool": self.pool.channels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a saved state until training starts."""
        self._state = state_dict


def cheapest(attention: nn.Module, values: nn.Linear, share: float) -> list[int]:
    """The neurons that add least to the residual stream.

    Args:
        attention: a site, with its output projection `to_out[0]`.
        values: its value projection.
        share: share of the neurons to return, and at least one.
    """
    output: Any = attention.to_out[0]  # type: ignore[index]
    # The products are computed in fp64 and rounded, so that equal neurons stay equal in any order of summation.
    added = (values.weight.double().norm(dim=1) * output.weight.double().norm(dim=0)).float()
    return sorted(added.argsort(stable=True)[: max(1, round(share * len(added)))].tolist())


def sink(key: str, sizes: Sequence[int], *, active: float, seed: int) -> Tensor:
    """Choose the neurons that a sample switches on, as a function of its picture and the seed on every machine.

    Args:
        key: name of the sample's picture.
        sizes: number of neurons in the pool of each site.
        active: share of each pool that is switched on, and at least one neuron.
        seed: seed of the choices for all samples.

    Returns:
        `(sum of sizes,)` bool.
    """
    digest = bytearray(hashlib.shake_256(f"{seed}:{key}".encode()).digest(8 * sum(sizes)))
    draws = torch.frombuffer(digest, dtype=torch.int64)
    on = torch.zeros(len(draws), dtype=torch.bool)
    for part, drawn in zip(on.split(list(sizes)), draws.split(list(sizes)), strict=True):
        part[drawn.argsort(stable=True)[: max(1, round(active * len(part)))]] = True
    return on
