"""Options of the stages that search for neurons or calibrate that search: its settings, all of them, by command.

`--published true` sets what makes the mode of NeMo's code (`PUBLISHED` in :mod:`memtrain.localization.settings`), and
leaves seeds, steps, theta, k and thresholds as they are given. Their `--no_theta` is `--settings.initial_theta null`,
their `--no_top_k` is `--settings.initial_k null`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from memtrain.errors import ConfigurationError
from memtrain.localization.settings import Settings


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the search for neurons.

    Args:
        settings: settings of the search
        published: search as NeMo's published code, down to its version of MS-SSIM and its mistakes. It sets `call`,
            `data_range`, `cropped`, `slack`, `literal_stop`, `swapped_guidance` and `refinement_steps`; the other
            settings are as given.
        sites: attention layers whose neurons are searched, such as `*`; default those of the down blocks and the
            middle. The same as `settings.sites`.
    """

    settings: Settings = field(default_factory=Settings)
    published: bool = False
    sites: str | None = None

    @property
    def search_settings(self) -> Settings:
        """Those of the search, all options taken together.

        Raises:
            ConfigurationError: if two options name different sites.
        """
        settings = self.settings.as_published() if self.published else self.settings
        if self.sites is None:
            return settings
        if settings.sites not in (None, self.sites):
            raise ConfigurationError(
                f"sites={self.sites!r} and settings.sites={settings.sites!r}",
                expected="one pattern",
                remedy="leave one of them out",
            )
        return replace(settings, sites=self.sites)


def require_statistics(path: Path) -> None:
    """That a file of statistics can be read, before a model is loaded.

    Raises:
        ConfigurationError: if not.
    """
    # Imported here, because help has no need of what reads tensors.
    from memtrain.localization.authors_files import read_tensors
    from memtrain.localization.statistics import ActivationStatistics

    if path.suffix == ".safetensors":
        ActivationStatistics.load(path)
    else:
        read_tensors(path)
