"""Options of the stages that search for neurons or calibrate this search: all settings, on the command line.

`--published true` sets the options of NeMo's published code (`PUBLISHED` in :mod:`memtrain.localization.settings`), and
keeps seeds, steps, theta, k and thresholds. NeMo's `--no_theta` is `--settings.initial_theta null`, and its
`--no_top_k` is `--settings.initial_k null`.
"""

# No postponed annotations here: the command line has to find the class of `settings`, from any stage.

from dataclasses import dataclass, field, replace
from pathlib import Path

from memtrain.errors import ConfigurationError
from memtrain.localization.settings import Settings


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the search for neurons.

    Args:
        settings: settings of the search
        published: search like NeMo's published code, including its version of MS-SSIM and its mistakes. It sets `call`,
            `data_range`, `cropped`, `slack`, `literal_stop`, `swapped_guidance` and `refinement_steps`, and keeps the
            other settings.
        sites: attention layers whose neurons are searched, such as `*`; by default the layers of the down blocks and
            the middle. The same as `settings.sites`.
    """

    settings: Settings = field(default_factory=Settings)
    published: bool = False
    sites: str | None = None

    @property
    def search_settings(self) -> Settings:
        """Settings of the search by all options together.

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
                remedy="leave out one of the two options",
            )
        return replace(settings, sites=self.sites)


def require_statistics(path: Path) -> None:
    """Check that a file of statistics can be read, before a model is loaded.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    # Imported here, because the help screens do not need modules that read tensors.
    from memtrain.localization.authors_files import read_tensors
    from memtrain.localization.statistics import ActivationStatistics

    if path.suffix == ".safetensors":
        ActivationStatistics.load(path)
    else:
        read_tensors(path)
