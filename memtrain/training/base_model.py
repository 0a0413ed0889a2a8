"""Which model is trained, where more is said of it than where it is."""

from __future__ import annotations

from dataclasses import dataclass

from memtrain.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model and how its captions are encoded.

    Args:
        path: a diffusers pipeline folder, a single-file checkpoint (.safetensors) or a hub name.
        config: of a single-file checkpoint, a pipeline folder or hub name with its configurations and tokenizers;
            default a folder of the file's name beside it, else what diffusers knows on the hub.
        max_sequence_length: tokens that a T5 or Gemma text encoder reads; default those of the stock pipeline (256 of
            SD3, 512 of FLUX.1, 120 of PixArt-α, 300 of PixArt-Σ and Sana). Fewer cost less, and cut long captions.
        guidance: what FLUX.1-dev is told of its guidance in training.

    Raises:
        ConfigurationError: if a value makes no sense.
    """

    path: str
    config: str | None = None
    max_sequence_length: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.max_sequence_length is not None and self.max_sequence_length < 1:
            raise ConfigurationError(
                f"max_sequence_length={self.max_sequence_length}", expected="at least 1", remedy="change it"
            )


def base_model(pretrained: str | BaseModel) -> BaseModel:
    """What is meant by a path alone."""
    return pretrained if isinstance(pretrained, BaseModel) else BaseModel(path=pretrained)
