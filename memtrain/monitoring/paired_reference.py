"""The base model on the very same noise: the reference for data that cannot be measured before training.

Every so often a batch runs once more, without gradients, under the weights that training began with: same latents,
same timestep, same noise. That is a closer comparison than a profile, whose noise and timesteps are its own, for fewer
visits. Nothing is measured before training and nothing is cached, so data may be streamed or too large for a profile.

In LoRA training the base model is the denoiser with its adapters switched off: nothing is copied. That holds where
adapters are all that is trained, in the text encoder too, and began as no change. Otherwise (full fine-tuning, adapters
that were trained before) a copy of the trainable parameters is exchanged for the running ones during that forward,
which in full fine-tuning is one more copy of the weights on the device.

Cost: a forward pass each time, and a second one for held-out samples; with every fourth batch a training step of the
embedded example takes about 1.2 times as long (benchmarks/RESULTS.md). Suggested: every fourth to eighth batch.

A text encoder that is trained along (LoRA in it, say) belongs to the base model too. Its parameters are exchanged as
well, and the captions encoded once more, if the module offers `text_encoder` and `encode_text(input_ids) -> (B, T,
width)`, and the batch `input_ids`. Otherwise, or if other inputs of the denoiser depend on trained parameters (pooled
text embeddings, a projection of image embeddings), the base model would read what training has made of them; that is
refused.

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
"""Relative difference of text embeddings that is put down to rounding."""


class PairedReference:
    """The parameters that training began with.

    Args:
        denoiser: wrapped (torch.compile, PEFT, DDP) or not, before any training step and before a checkpoint is loaded.
        text_encoder: whose trained parameters are remembered, too; None if captions cannot be encoded again.

    Attributes:
        switches_off: whether the base model is had by switching adapters off, without a copy.

    Raises:
        ConfigurationError: if it has no trainable parameter, or they are sharded.
    """

    def __init__(self, denoiser: nn.Module, text_encoder: nn.Module | None = None) -> None:
        self._text_encoder = text_encoder
        if not _trained(denoiser):
            raise ConfigurationError(
                f"{type(denoiser).__name__} has no trainable parameter",
                expected="a denoiser that is trained",
                remedy="inject adapters before training starts: in the module's __init__, setup or configure_model; "
                "in a loop, before the guard is made",
            )
        if is_sharded(unwrap(denoiser)):
            raise ConfigurationError(
                "The weights of the denoiser are spread over processes (FSDP2), and are not kept for a comparison",
                expected="weights that every process holds whole",
                remedy="set `reference: true`, which measures before training, or `reference: false`",
            )
        parts = self._parts(denoiser)
        self.switches_off = all(can_be_switched_off(part, _trained(part).values()) for part in parts)
        trained = self.exchanged(denoiser)
        self._names = frozenset(trained)
        kept = {} if self.switches_off else trained
        self._start = {name: value.detach().clone() for name, value in kept.items()}

    def _parts(self, denoiser: nn.Module) -> list[nn.Module]:
        """The trained modules, without wrappers."""
        return [unwrap(denoiser), *([] if self._text_encoder is None else [self._text_encoder])]

    def exchanged(self, denoiser: nn.Module) -> dict[str, nn.Parameter]:
        """The trained parameters that belong to the base model, by name."""
        text = {} if self._text_encoder is None else _trained(self._text_encoder)
        return _trained(denoiser) | {f"text_encoder.{name}": value for name, value in text.items()}

    @contextmanager
    def base_weights(self, denoiser: nn.Module) -> Iterator[None]:
        """Within the context, `denoiser`, wrapped or not, and the text encoder have the parameters of the beginning."""
        trained = self.exchanged(denoiser)
        if trained.keys() != self._names:
            changed = sorted(trained.keys() ^ self._names)
            raise ConfigurationError(
                f"{len(changed)} trainable parameters appeared or went since training was set up, first {changed[0]!r}",
                expected="adapters that are there from the beginning",
                remedy="inject adapters, and freeze parameters, in the module's __init__, setup or configure_model",
            )
        if self.switches_off:
            with switched_off(self._parts(denoiser)):
                yield
            return
        running = {name: value.data for name, value in trained.items()}
        for name, value in trained.items():
            # `precision: bf16-true` converts the module after it was set up.
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
        """Signal values of a training batch under the base model, `(B, columns)`.

        Args:
            observation: complete, of a probe that keeps calls.
            probe: the same one.
            read: signal values of an observation.
            complete: adds to the observation what the signals need beside the one forward.
            encode: text embeddings `(B, T, width)` of the batch's captions by the text encoder as it is; None if they
                cannot be encoded again.
            untrained: the batch was seen by the base model itself, whose text embeddings have to be the same.

        Raises:
            ConfigurationError: if an input of the denoiser depends on parameters that are trained, and cannot be had
                as it was before training.
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
        """What the probe sees of the same forward under the base model; arguments as of :meth:`values`."""
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
        """Whether the text embeddings that the denoiser got depend on parameters that are trained.

        Raises:
            ConfigurationError: if they do and cannot be had again, or if another input does.
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
        f"{found}, so the base model of `reference: paired` would read what training has made of them",
        expected="a text encoder that is not trained; or one whose embeddings can be had again: `text_encoder` and "
        "encode_text(input_ids) -> (B, T, width) on the module, `input_ids` in the batch, and no other trained input",
        remedy="add these to module and batch, without dropout in the text encoder; or set `reference: true`, which "
        "measures before training, or `reference: false`",
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


def trained_parameters(value: Tensor) -> int:
    """How many parameters a tensor was computed from that get a gradient through it.

    What requires a gradient without being a parameter, as gradient checkpointing makes of inputs, is none. Reentrant
    checkpointing hides what it was computed from, which counts as one.
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
    """The text encoder of a module that can encode captions again, else None."""
    encoder = getattr(module, "text_encoder", None)
    return encoder if isinstance(encoder, nn.Module) and callable(getattr(module, "encode_text", None)) else None


def _trained(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names that they have without wrappers."""
    return {name: value for name, value in unwrap(denoiser).named_parameters() if value.requires_grad}
