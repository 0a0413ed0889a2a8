"""Memorization sinks: a reserved pool of value neurons takes up what is specific to a sample, and leaves with it.

After the memorization sinks of language models (Ghosal et al., "Memorization Sinks: Isolating Memorization during LLM
Training", ICML 2025, arXiv 2507.09937), where hidden neurons of the MLPs are reserved and a sequence switches on the
same few of them whenever it comes up. Here the neurons are output channels of the value projections, which see the text
alone, and the identifier is the name of the sample's picture: its key, where it stands alone.

In a training forward each sample has the neurons of its own subset of the pool (`active`) switched on and the others
off. In all other forwards, such as held-out measurements, validation and sampling, the whole pool is off, from the
first step on, and the exported pipeline does without it; a module that `PipelineExport` cannot export has to apply
`memorization_sinks.safetensors`, a NeuronMask in the run folder, before it is saved. A pool starts empty: its value
rows are set to zero before the reference profile is measured, so that at the start the sinks change no sample's loss,
and what a sample gains later over the base model is what was learnt.

The pool is, at each site, the neurons with the smallest product of the norm of their value row and the norm of their
column in the output projection, which bounds what a neuron adds to the residual stream for a text of unit norm.

Cost: a hash per sample and a multiplication per site and step. And the base model loses its pool at once: with pools of
0.05, 0.1, 0.2 and 0.5 off, the loss of `assets/tiny-sd` rises by 0.1, 0.2, 0.5 and 1.8 % on images that it was trained
on (by 0.5 % for 0.1 of the neurons at random), and falls by 0.4, 0.6, 0.9 and 2.6 % on held-out emoji, which its
captions help little with (128 images each, 8 timesteps, `memtrain.evaluation.measures.heldout_loss`, NeuronMask).
Training goes on without the pool.

Suggested: `pool: 0.1`, `active: 0.25`: of the 96 neurons of a site in tiny-sd a sample has 2, of SD 1.5's 1,280 it has
32. On the embedded default they stop nothing: 10 of 10 planted images are reproduced with and without them, and the
held-out loss stays what it was (one seed, benchmarks/RESULTS.md).

Cannot: keep memorization out of the shared neurons, whose gradient is not blocked, nor out of convolutions and
self-attention. A picture that is repeated under other keys, where nobody looked for families, fills other sinks, and
the shared neurons learn what they have in common. The monitor watches training forwards, in which a sample's sink is
on: a flag may mean what leaves with the sink, so evaluate the exported pipeline. Value projections have to be plain
linear layers that train; adapters are refused, because a file of adapters could not take the pool away. Not tried with
FSDP2.
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
    """Give every sample a few value neurons of its own, and remove all of them in the end.

    Args:
        pool: share of the neurons of each site that are reserved.
        active: share of the pool that a sample switches on.
        sites: glob over attention sites (`*` for all); default the backbone's subset.
        seed: of the samples' subsets.
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
                remedy="change them",
            )
        self.share, self.active, self.sites = pool, active, sites
        self.seed = seed
        self.pool: NeuronMask | None = None
        self._on: dict[str, Tensor] = {}
        self._hooks: ValueHooks | None = None
        self._state: dict[str, Any] = {}

    def effects(self) -> Effects:
        """Training forwards run with sinks, others without; each batch's are looked up before."""
        return Effects(edits_training=True, changes_batch=True)

    def attach(self, denoiser: nn.Module, *, backbone: Backbone, module: Any) -> None:
        """Choose and empty the pool, unless the run is resumed, and switch it off.

        Raises:
            ConfigurationError: if a value projection does not train, or a resumed run has other sites.
            ProbeError: if a site cannot have sinks.
        """
        sites = backbone.select_sites(unwrap(denoiser), self.sites)
        self._hooks = ValueHooks(denoiser, sites, backbone=backbone, edit=self._edit)
        layers: dict[str, Any] = {site: self._hooks.layer(site) for site in sites}
        frozen = [site for site, layer in layers.items() if not all(p.requires_grad for p in layer.parameters())]
        if frozen:
            raise ConfigurationError(
                f"The value projections of {len(frozen)} of {len(sites)} sites do not train, first {frozen[0]!r}",
                expected="value projections that train, so that sinks can take something up",
                remedy="train them, name other `sites`, or leave MemorizationSinks out",
            )
        # Taken once: a second fit with the same callback starts anew.
        state, self._state = self._state, {}
        if state and set(state["pool"]) != set(sites):
            raise ConfigurationError(
                f"The checkpoint has sinks at {sorted(state['pool'])}",
                expected=f"the sites of this run: {sorted(sites)}",
                remedy="resume with the settings of the run",
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
        """Look up which neurons the samples of the batch switch on."""
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
        # One copy to the device instead of one per site.
        whole = to_device(torch.cat(factors, dim=1), self._module.device)
        self._on = dict(zip(pools, whole.split([on.shape[1] for on in factors], dim=1), strict=True))

    def forward_done(self, host: Host) -> None:
        """Raise if the forward did not pass by every site."""
        assert self._hooks is not None
        self._hooks.require_reached()

    def _edit(self, site: str, values: Tensor) -> Tensor:
        assert self._hooks is not None
        if self._hooks.training and self._on:
            return values * self._on[site][:, None].to(values)
        return values * self._off[site].to(values)

    def finish(self, host: Host) -> None:
        """Write the pool into the run folder; say so where nothing exports the pipeline without it."""
        assert self.pool is not None
        if host.rank == 0:
            path = host.folder / "memorization_sinks.safetensors"
            self.pool.save(path)
            warn_unless_exported(host, path)

    def exporting(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Within this context the pool's weights are zero."""
        assert self.pool is not None
        return self.pool.baked(denoiser)

    def state_dict(self) -> dict[str, Any]:
        """The pool, which the trained weights would not yield again."""
        return self._state if self.pool is None else {"pool": self.pool.channels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._state = state_dict


def cheapest(attention: nn.Module, values: nn.Linear, share: float) -> list[int]:
    """The neurons that add least to the residual stream.

    Args:
        attention: a site, with its output projection `to_out[0]`.
        values: its value projection.
        share: of the neurons; at least one is returned.
    """
    output: Any = attention.to_out[0]  # type: ignore[index]
    # In fp64 and then rounded, so that neurons that add the same are equal whatever the order of summation.
    added = (values.weight.double().norm(dim=1) * output.weight.double().norm(dim=0)).float()
    return sorted(added.argsort(stable=True)[: max(1, round(share * len(added)))].tolist())


def sink(key: str, sizes: Sequence[int], *, active: float, seed: int) -> Tensor:
    """Which neurons of the pools a sample switches on: a function of its picture and the seed, on every machine.

    Args:
        key: name of the sample's picture.
        sizes: neurons in the pool of each site.
        active: share of each pool that is switched on; at least one neuron is.
        seed: of all samples' choices.

    Returns:
        `(sum of sizes,)` bool.
    """
    digest = bytearray(hashlib.shake_256(f"{seed}:{key}".encode()).digest(8 * sum(sizes)))
    draws = torch.frombuffer(digest, dtype=torch.int64)
    on = torch.zeros(len(draws), dtype=torch.bool)
    for part, drawn in zip(on.split(list(sizes)), draws.split(list(sizes)), strict=True):
        part[drawn.argsort(stable=True)[: max(1, round(active * len(part)))]] = True
    return on
