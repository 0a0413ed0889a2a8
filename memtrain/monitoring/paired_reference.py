"""The base model on the very same noise, as the reference for data that cannot be measured before training.

Every n-th batch runs once more without gradients, under the weights from before training, with the same latents,
timesteps and noise. This comparison is closer than a profile with its own noise and timesteps, but it covers fewer
visits. Nothing is measured before training and nothing is cached, so data may be streamed or too large for a profile.

In LoRA training the base model is the denoiser with its adapters switched off, and nothing is copied. This holds if
only adapters are trained, also in the text encoder, and if they began without effect. In other cases (full fine-tuning,
adapters that were trained before), a copy of the trainable parameters replaces the current ones during that forward.
Full fine-tuning needs one more copy of the weights on the device for this.

Cost: a forward pass each time, and a second one for held-out samples. With every fourth batch, a training step of the
embedded example takes about 1.2 times as long (benchmarks/RESULTS.md). Suggested: every fourth to eighth batch.

A trained text encoder, for instance with LoRA, belongs to the base model too. Its parameters are also exchanged and the
captions encoded once more, if the module offers `text_encoder` and `encode_text(input_ids) -> (B, T, width)`, and the
batch `input_ids`. Without these methods, the base model would read trained inputs. The same holds if other inputs of
the denoiser depend on trained parameters (pooled text embeddings, a projection of image embeddings). Both are refused.

Cannot: sharded parameters (FSDP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import per_sample_mse, residual_from_gradient
from memtrain.models.adapters import can_be_switched_off, switched_off
from memtrain.models.backbones.base import Backbone, unwrap
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.whole_weights import is_sharded

SAME_TEXT = 0.02
"""Largest relative difference of text embeddings from rounding."""


class PairedReference:
    """The trainable parameters from before training.

    Args:
        denoiser: the denoiser, with or without wrapper (torch.compile, PEFT, DDP), before any training step and before
            a checkpoint is loaded.
        text_encoder: the text encoder, whose trained parameters are also remembered; None if captions cannot be encoded
            again.

    Attributes:
        switches_off: whether switching adapters off gives the base model without a copy.

    Raises:
        ConfigurationError: if the denoiser has no trainable parameter, or if its parameters are sharded.
    """

    def __init__(self, denoiser: nn.Module, text_encoder: nn.Module | None = None) -> None:
        self._text_encoder = text_encoder
        if not _trained(denoiser):
            raise ConfigurationError(
                f"{type(denoiser).__name__} has no trainable parameter",
                expected="a denoiser that is trained",
                remedy="inject adapters before training starts, in the module's __init__, setup or configure_model, or "
                "before the guard is made",
            )
        if is_sharded(unwrap(denoiser)):
            raise ConfigurationError(
                "The weights of the denoiser are sharded (FSDP2), so they cannot be kept for a comparison",
                expected="complete weights on every process",
                remedy="set `reference: true`, which measures before training, or `reference: false`",
            )
        parts = self._parts(denoiser)
        self.switches_off = all(can_be_switched_off(part, _trained(part).values()) for part in parts)
        trained = self.exchanged(denoiser)
        self._names = frozenset(trained)
        kept = {} if self.switches_off else trained
        self._start = {name: value.detach().clone() for name, value in kept.items()}

    def _parts(self, denoiser: nn.Module) -> list[nn.Module]:
        """Return the trained modules without wrappers."""
        return [unwrap(denoiser), *([] if self._text_encoder is None else [self._text_encoder])]

    def exchanged(self, denoiser: nn.Module) -> dict[str, nn.Parameter]:
        """Return the trained parameters that belong to the base model, by name."""
        text = {} if self._text_encoder is None else _trained(self._text_encoder)
        return _trained(denoiser) | {f"text_encoder.{name}": value for name, value in text.items()}

    @contextmanager
    def base_weights(self, denoiser: nn.Module) -> Iterator[None]:
        """Give `denoiser`, with or without wrapper, and the text encoder the parameters from before training."""
        trained = self.exchanged(denoiser)
        if trained.keys() != self._names:
            changed = sorted(trained.keys() ^ self._names)
            raise ConfigurationError(
                f"{len(changed)} trainable parameters were added or removed after the setup, first {changed[0]!r}",
                expected="the same adapters from the start of training",
                remedy="inject adapters, and freeze parameters, in the module's __init__, setup or configure_model",
            )
        if self.switches_off:
            with switched_off(self._parts(denoiser)):
                yield
            return
        running = {name: value.data for name, value in trained.items()}
        for name, value in trained.items():
            # `precision: bf16-true` converts the module after the setup.
            self._start[name] = self._start[name].to(value)
            value.data = self._start[name]
        try:
            yield
        finally:
            for name, value in trained.items():
                value.data = running[name]

    def values(
        self,
        observation: Observation,
        probe: DenoiserProbe,
        *,
        read: Callable[[Observation], Tensor],
        complete: Callable[[Observation], None] | None = None,
        encode: Callable[[], Tensor] | None = None,
        untrained: bool = False,
    ) -> Tensor:
        """Return signal values of a training batch under the base model, `(B, columns)`.

        Args:
            observation: the complete observation from a probe that keeps calls.
            probe: the probe of the observation.
            read: function that reads the signal values of an observation.
            complete: function that adds the further readings of the signals to an observation.
            encode: function that encodes the batch's captions with the current text encoder to `(B, T, width)`; None if
                they cannot be encoded again.
            untrained: whether the base model itself has seen the batch, so that its text embeddings must be the same.

        Raises:
            ConfigurationError: if an input of the denoiser depends on trained parameters, and cannot be computed with
                the parameters from before training.
        """
        assert observation.prediction is not None
        assert observation.gradient is not None
        base = self.replay(observation, probe, complete=complete, encode=encode, untrained=untrained)
        assert base.prediction is not None

        def predicted(output: Tensor) -> Tensor:
            return probe.backbone.prediction_gradient(probe.denoiser, output)

        target = observation.target
        if target is None:
            assert observation.gradient is not None
            residual = residual_from_gradient(observation.gradient, observation.loss_scale, observation.loss_weight)
            target = predicted(observation.prediction).float() - residual
        base.sample_loss = per_sample_mse(predicted(base.prediction), target, mask=observation.loss_mask)
        return read(base)

    def replay(
        self,
        observation: Observation,
        probe: DenoiserProbe,
        *,
        complete: Callable[[Observation], None] | None = None,
        encode: Callable[[], Tensor] | None = None,
        untrained: bool = False,
    ) -> Observation:
        """Return the probe's observation of the same forward under the base model; see :meth:`values`."""
        assert observation.call is not None
        args, kwargs = observation.call
        trained_text = self._trained_text(observation, probe.backbone, encodes=encode is not None)
        # A host may name its samples later.
        keys = list(observation.keys) or [""] * len(observation.noisy_latents)
        base = Observation(keys, observation.prompt_length, observation.prompt_mask)
        with self.base_weights(probe.denoiser), torch.no_grad():
            if trained_text and encode is not None:
                text, given = encode(), observation.text_embeddings
                same = text.shape == given.shape and (
                    not untrained or (text - given).norm() <= SAME_TEXT * given.norm()
                )
                if not same:
                    raise _refused("encode_text(batch['input_ids']) does not give the text embeddings of training")
                args, kwargs = probe.backbone.with_text(args, kwargs, text.to(given))
            with probe.measure(base):
                probe.host(*args, **kwargs)
            if complete is not None:
                complete(base)
        return base

    def _trained_text(self, observation: Observation, backbone: Backbone, *, encodes: bool) -> bool:
        """Return whether the denoiser's text embeddings depend on trained parameters.

        Raises:
            ConfigurationError: if they do and cannot be encoded again, or if another input depends on them.
        """
        assert observation.call is not None
        args, kwargs = observation.call
        trained = [value for value in tensors((args, kwargs)) if trained_parameters(value)]
        text = backbone.inputs(args, kwargs)[2]
        if trained and not (encodes and self._text_encoder is not None and all(value is text for value in trained)):
            count = sum(map(trained_parameters, trained))
            raise _refused(f"The denoiser's inputs depend on {count} trained parameters outside of it")
        return bool(trained)


def _refused(found: str) -> ConfigurationError:
    return ConfigurationError(
        f"{found}, so the base model of `reference: paired` would read trained inputs",
        expected="a text encoder that is not trained, or one that can encode again, with `text_encoder` and "
        "encode_text(input_ids) -> (B, T, width) on the module, `input_ids` in the batch, and no other trained input",
        remedy="add these to module and batch, without dropout in the text encoder, or set `reference: true`, which "
        "measures before training, or `reference: false`",
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


def trained_parameters(value: Tensor) -> int:
    """Count the parameters that get a gradient through a tensor.

    Tensors that require a gradient without being parameters, such as inputs under gradient checkpointing, do not count.
    Reentrant checkpointing hides the parameters of its output, which counts as one.
    """
    if isinstance(value, nn.Parameter):
        return int(value.requires_grad)
    waiting, seen, found = [value.grad_fn], set(), 0
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        hidden = type(node).__name__ == "CheckpointFunctionBackward"
        found += hidden or isinstance(getattr(node, "variable", None), nn.Parameter)
        waiting += [following for following, _ in node.next_functions]
    return found


def text_encoder_of(module: Any) -> nn.Module | None:
    """Return the text encoder of a module that can encode captions again, or else None."""
    encoder = getattr(module, "text_encoder", None)
    return encoder if isinstance(encoder, nn.Module) and callable(getattr(module, "encode_text", None)) else None


def _trained(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by their names without wrappers."""
    return {name: value for name, value in unwrap(denoiser).named_parameters() if value.requires_grad}
