"""Remembers the weights from before training, after the module is built and before a checkpoint is restored.

Lightning calls a callback's `setup`, the module's `setup` and `configure_model`, restores a checkpoint, and then calls
`on_fit_start`. Callbacks have no hook between `configure_model` and the restoring. So a copy is made when the monitor
is set up, if the denoiser exists by then. Another copy is made whenever the module is about to load a state, and the
last of these states is the checkpoint. Without a checkpoint, the final copy is made at `on_fit_start`.

Cannot: find a denoiser that is built in `configure_model()` or `setup()`, if a checkpoint is restored without the
module's `load_state_dict`.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import nn

from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.models.backbones.base import find_denoiser
from memtrain.monitoring.paired_reference import PairedReference, text_encoder_of


class StartingWeights:
    """Watches a module until training begins.

    Args:
        module: the trained module, before a checkpoint is restored.
        path: module path of the denoiser; None finds it.
    """

    def __init__(self, module: nn.Module, path: str | None) -> None:
        self._path = path
        self._kept: PairedReference | None = None
        # References are weak on both sides, because averages of weights are copies of the whole module with its hooks.
        this, watched = ref(self), ref(module)
        self._watched = watched

        def before_loading(loading: nn.Module, *_: Any) -> None:
            starting = this()
            if starting is not None and loading is watched():
                starting._keep(loading)

        self._handle = module.register_load_state_dict_pre_hook(before_loading)
        self._keep(module)

    def _keep(self, module: nn.Module) -> None:
        # The former copy is released first, because it may be as large as the model.
        self._kept = None
        try:
            self._kept = PairedReference(find_denoiser(module, self._path)[1], text_encoder_of(module))
        except (MemtrainError, AttributeError):
            # The denoiser or its adapters do not exist yet. If they are still missing when training begins, that is
            # refused.
            return

    def _text_encoder(self) -> nn.Module | None:
        module = self._watched()
        return None if module is None else text_encoder_of(module)

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        self._handle.remove()

    def finish(self, denoiser: nn.Module, *, restored: bool) -> PairedReference:
        """Return the weights from before training; call it when training begins.

        Args:
            denoiser: the denoiser in its form for training.
            restored: whether a checkpoint has been loaded into it.

        Raises:
            ConfigurationError: if a checkpoint was restored before a copy could be made, or if nothing is trained.
        """
        self.close()
        if not restored:
            self._kept = None
            return PairedReference(denoiser, self._text_encoder())
        if self._kept is None:
            # This raises an error if nothing is trained.
            PairedReference(denoiser, self._text_encoder())
            raise ConfigurationError(
                "The weights of the denoiser from before training are unknown. It or its adapters were built too late, "
                "or a checkpoint was restored before",
                expected="a denoiser with its adapters, built before a guard is made or a checkpoint is restored",
                remedy="build it in the module's __init__, or before the guard, or set `reference` to false",
            )
        return self._kept
