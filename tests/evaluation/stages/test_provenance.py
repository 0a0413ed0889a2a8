"""What every results file says about its making."""

import importlib.metadata
from datetime import UTC, datetime

from memtrain.evaluation.stages.provenance import provenance


def test_it_tells_the_time_and_the_installed_versions() -> None:
    found = provenance()
    made = datetime.strptime(found["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - made).total_seconds()) < 60
    for package in ("memtrain", "diffusers", "transformers"):
        assert found["versions"][package] == importlib.metadata.version(package)
