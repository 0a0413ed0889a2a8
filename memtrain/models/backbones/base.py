"""The facts that a backbone file states about its denoiser family."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memtrain.errors import ProbeError


@dataclass(frozen=True)
class Projection:
    """The inputs of an attention, bit for bit.

    Attributes:
        query: the queries of the image tokens, `(B, H, N, D)`.
        key: the keys of the text tokens, `(B, H, T, D)`.
        text_states: the input of the text's value projection, `(B, T, width)`; None if text and image share one.
        valid: false for tokens that the attention masks out, `(B, T)` bool; None if it masks none.
        joint_key: the keys of all tokens in joint attention, `(B, H, T + N, D)`; None in cross-attention.
        text: the place of `key` in `joint_key`.
    """

    query: Tensor
    key: Tensor
    text_states: Tensor | None
    valid: Tensor | None = None
    joint_key: Tensor | None = None
    text: slice = field(default_factory=lambda: slice(None))


class Backbone(ABC):
    """The structure of one denoiser family. Instances hold no state.

    Attributes:
        joint: whether image and text tokens attend to each other in one attention.
        clip_layout: whether text tokens are `BOS words EOS padding` throughout, so that a prompt length places them.
        text_position: the place of `encoder_hidden_states` among the arguments of the denoiser's forward.
        pooled_at: the keyword, and a key in it, of the denoiser's vector of the whole caption.
        mask_at: the keyword, and a key in it, of the mask of the text.
    """

    joint: ClassVar[bool]
    clip_layout: ClassVar[bool]
    text_position: ClassVar[int] = 1
    pooled_at: ClassVar[tuple[str, ...]] = ()
    mask_at: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    @abstractmethod
    def accepts(module: nn.Module) -> bool:
        """Return whether `module` is a denoiser of this family."""

    @abstractmethod
    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return the attention modules that read the text, by module path, in the order of the forward pass."""

    @abstractmethod
    def default_sites(self, names: Sequence[str]) -> list[str]:
        """Return the subset of `names` that is read by default."""

    def select_sites(self, denoiser: nn.Module, pattern: str | None = None) -> dict[str, nn.Module]:
        """Return the sites whose module path fits a glob, or the default ones.

        Args:
            denoiser: the unwrapped denoiser.
            pattern: a glob, such as `*` for all or `up_blocks.*`; None for the backbone's subset.

        Raises:
            ProbeError: if the pattern matches no site.
        """
        every = self.sites(denoiser)
        default = set(self.default_sites(list(every)))
        chosen = {
            name: module
            for name, module in every.items()
            if (name in default if pattern is None else fnmatchcase(name, pattern))
        }
        if not chosen:
            raise ProbeError(
                f"The site pattern {pattern!r} matches none of {len(every)} attention sites",
                expected=f"a pattern over names such as {next(iter(every), 'none')!r}",
                remedy="use '*' for all sites",
            )
        return chosen

    @abstractmethod
    def project(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, tokens: int
    ) -> Projection:
        """Return the inputs of one call of an attention.

        Args:
            attention: one of the sites.
            args: the positional arguments of its forward call.
            kwargs: the keyword arguments of its forward call.
            tokens: the number T of text tokens that the denoiser got.

        Raises:
            ProbeError: if the call has a form that cannot be read, such as fused projections.
        """

    def value_projection(self, attention: nn.Module) -> str:
        """Return the name of a site's layer that makes values of the text, `(B, T, C)` from text embeddings.

        Raises:
            ProbeError: if the site has no such layer for the text alone.
        """
        if not self.joint:
            return "to_v"
        if getattr(attention, "add_v_proj", None) is None:
            raise ProbeError(
                f"This {type(attention).__name__} makes values of image and text in one layer",
                expected="a layer that gets only the text",
                remedy="leave out single-stream blocks with a narrower `sites` pattern",
            )
        return "add_v_proj"

    @abstractmethod
    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Return noisy latents `(B, ...)`, timestep(s) from 0 to 1,000, text embeddings `(B, T, width)` of a call."""

    def with_text(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], text: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the same forward call with other text embeddings `(B, T, width)`."""
        if len(args) > self.text_position:
            return (*args[: self.text_position], text, *args[self.text_position + 1 :]), kwargs
        return args, {**kwargs, "encoder_hidden_states": text}

    def with_caption(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        forward: Callable[..., Any],
        caption: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Return keyword arguments of the same call with another caption, in all forms that the denoiser gets.

        Args:
            args: the positional arguments of the call.
            kwargs: the keyword arguments of the call.
            forward: the denoiser's forward, whose signature names `args`.
            caption: `text_embeddings` `(1 or B, T, width)`, and `pooled_embeddings` and `text_mask` if the call has
                them.

        Raises:
            ProbeError: if the call has a form that `caption` lacks.
        """
        kwargs = {**inspect.signature(forward).bind_partial(*args).arguments, **kwargs}
        known = self.inputs((), kwargs)[2]
        text = caption["text_embeddings"].to(known).expand(len(known), -1, -1)
        _, kwargs = self.with_text((), kwargs, text)
        for name, path in (("pooled_embeddings", self.pooled_at), ("text_mask", self.mask_at)):
            held: Any = kwargs
            for key in path:
                held = None if held is None else held.get(key)
            if not path or not isinstance(held, Tensor):
                continue
            if name not in caption:
                raise ProbeError(
                    f"The denoiser gets {'.'.join(path)} with its text, but the other caption lacks it",
                    expected=f"`text_embeddings` and `{name}` of the caption",
                    remedy="let unconditional_text() return a dict with both",
                )
            other = caption[name].to(held).expand(len(known), *caption[name].shape[1:])
            inner = other if len(path) == 1 else {**kwargs[path[0]], path[1]: other}
            kwargs = {**kwargs, path[0]: inner}
        return kwargs

    def output(self, result: Any) -> Tensor:
        """Return the prediction `(B, ...)` of a forward call's result: `.sample`, or the first entry of a tuple."""
        prediction: Tensor = result[0] if isinstance(result, tuple) else result.sample
        return prediction

    def prediction_gradient(self, denoiser: nn.Module, gradient: Tensor) -> Tensor:
        """Return the part of the output's gradient `(B, ...)` for the predicted noise; by default all of it."""
        return gradient


def named_arguments(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments `names`, the first parameters of a forward, positional or by keyword; None if absent."""
    return [args[index] if len(args) > index else kwargs.get(name) for index, name in enumerate(names)]


def evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of `names`, evenly spaced, with the last one."""
    count = min(count, len(names))
    return [names[(index + 1) * len(names) // count - 1] for index in range(count)]


def refuse_fused(attention: nn.Module) -> None:
    """Refuse fused projections of an attention: `to_q` and `to_k` are outdated as soon as those are trained."""
    if getattr(attention, "fused_projections", False):
        raise ProbeError(
            "An attention with fused projections cannot be read: it no longer computes with its to_q and to_k",
            expected="separate projections",
            remedy="call unfuse_qkv_projections() on the denoiser",
        )


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile, PEFT, DistributedDataParallel and Fabric."""
    while True:
        inner = module.module if isinstance(module, DistributedDataParallel) else getattr(module, "_orig_mod", None)
        if inner is None:
            # Fabric's wrapper is recognized by its attribute, because Lightning is not imported here.
            inner = getattr(module, "_forward_module", None)
        base_model: Any = getattr(module, "get_base_model", None)
        if inner is None and base_model is not None:
            inner = base_model()
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _families(family: type[Backbone] = Backbone) -> Iterator[type[Backbone]]:
    for child in sorted(family.__subclasses__(), key=lambda child: child.__name__):
        if not inspect.isabstract(child):
            yield child
        yield from _families(child)


def backbones() -> list[type[Backbone]]:
    """Return every family, found by walking this package."""
    package = importlib.import_module(__package__ or "memtrain.models.backbones")
    for entry in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{entry.name}")
    return list(_families())


def find_backbone(module: nn.Module) -> Backbone | None:
    """Return the backbone that accepts `module` (wrapped or not), or None."""
    inner = unwrap(module)
    return next((family() for family in backbones() if family.accepts(inner)), None)


def find_denoiser(root: nn.Module, path: str | None = None) -> tuple[str, nn.Module, Backbone]:
    """Find the denoiser inside a larger module.

    Args:
        root: the larger module, for instance a LightningModule.
        path: the module path of the denoiser; by default the only submodule that a backbone accepts.

    Returns:
        Its path, the module and its backbone. If a denoiser has a wrapper (torch.compile, PEFT), the wrapper.

    Raises:
        ProbeError: if there is no denoiser, or more than one, or if the named one belongs to no known family.
    """
    found: dict[int, tuple[str, nn.Module, Backbone]] = {}
    for name, module in [(path, root.get_submodule(path))] if path else root.named_modules(remove_duplicate=False):
        backbone = find_backbone(module)
        if backbone is not None:
            known = found.get(id(unwrap(module)))
            if known is None or known[1] is unwrap(module):
                found[id(unwrap(module))] = (name, module, backbone)
    if len(found) != 1:
        names = [name for name, _, _ in found.values()]
        raise ProbeError(
            f"{len(found)} denoisers found in {type(root).__name__}{': ' + ', '.join(names) if names else ''}",
            expected="exactly one module of a known family in memtrain.models.backbones",
            remedy="set `denoiser` to the module path inside the LightningModule",
        )
    return next(iter(found.values()))
