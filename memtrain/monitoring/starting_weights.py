"""When to remember the weights that training begins with: after the module was built, before a checkpoint is restored.

Lightning calls a callback's `setup`, the module's `setup` and `configure_model`, restores a checkpoint, and then calls
`on_fit_start`. There is no hook for callbacks between the last two of building and the restoring. So a copy is taken
when the monitor is set up, if the denoiser is there by then; another one whenever the module is about to load a state,
the last of which is the checkpoint's; and, if no checkpoint was restored, the one that counts at `on_fit_start`.

Cannot: find a denoiser that is built in `configure_model()` or `setup()` where a checkpoint is restored by other means
than the module's `load_state_dict`.
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
        module: what is trained, before a checkpoint is restored.
        path: module path of the denoiser; None finds it.
    """

    def __init__(self, module: nn.Module, path: str | None) -> None:
        self._path = path
        self._kept: PairedReference | None = None
        # Weak on both sides: averages of weights are copies of the whole module, with its hooks.
        this, watched = ref(self), ref(module)
        self._watched = watched

        def before_loading(loading: nn.Module, *_: Any) -> None:
            starting = this()
            if starting is not None and loading is watched():
                starting._keep(loading)

        self._handle = module.register_load_state_dict_pre_hook(before_loading)
        self._keep(module)

    def _keep(self, module: nn.Module) -> None:
        # Released first: it may be as large as the model.
        self._kept = None
        try:
            self._kept = PairedReference(find_denoiser(module, self._path)[1], text_encoder_of(module))
        except (MemtrainError, AttributeError):
            # Not built yet, or no adapters in it yet; what is still so when training begins is refused then.
            return

    def _text_encoder(self) -> nn.Module | None:
        module = self._watched()
        return None if module is None else text_encoder_of(module)

    def close(self) -> None:
        """Stop watching; harmless when done before."""
        self._handle.remove()

    def finish(self, denoiser: nn.Module, *, restored: bool) -> PairedReference:
        """The weights that training began with; call when training begins.

        Args:
            denoiser: as it will be trained.
            restored: whether a checkpoint was loaded into it since.

        Raises:
            ConfigurationError: if a checkpoint was restored before they could be seen, or nothing is trained.
        """
        self.close()
        if not restored:
            self._kept = None
            return PairedReference(denoiser, self._text_encoder())
        if self._kept is None:
            # Says so if nothing is trained.
            PairedReference(denoiser, self._text_encoder())
            raise ConfigurationError(
                "Nobody has seen the weights that the denoiser began with: it, or its adapters, came later than the "
                "watch, or a checkpoint was restored before",
                expected="a denoiser built, with its adapters, before a guard is made or a checkpoint restored",
                remedy="build it in the module's __init__, or before the guard; or set `reference` to false",
            )
        return self._kept
