"""The trained base model, for configurations that say more of it than its path."""

from __future__ import annotations

from dataclasses import dataclass

from memtrain.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model and the encoding of its captions.

    Args:
        path: a diffusers pipeline folder, a single-file checkpoint (.safetensors) or a hub name.
        config: a pipeline folder or hub name with the configurations and tokenizers of a single-file checkpoint. The
            default is a folder with the file's name beside it, or else the configuration that diffusers finds on the
            hub.
        max_sequence_length: the number of tokens that a T5 or Gemma text encoder reads. The default is that of the
            stock pipeline (256 for SD3, 512 for FLUX.1, 120 for PixArt-α, 300 for PixArt-Σ and Sana). Fewer tokens cost
            less, and cut long captions.
        guidance: the guidance strength that FLUX.1-dev gets as an input in training.

    Raises:
        ConfigurationError: if a value is out of range.
    """

    path: str
    config: str | None = None
    max_sequence_length: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.max_sequence_length is not None and self.max_sequence_length < 1:
            raise ConfigurationError(
                f"max_sequence_length={self.max_sequence_length}",
                expected="at least 1",
                remedy="raise model.init_args.pretrained.max_sequence_length",
            )


def base_model(pretrained: str | BaseModel) -> BaseModel:
    """Turn a path into a base model; return a base model unchanged."""
    return pretrained if isinstance(pretrained, BaseModel) else BaseModel(path=pretrained)
