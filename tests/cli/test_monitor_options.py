"""`--monitor.NAME VALUE` sets the monitor that a configuration names."""

import pytest
from jsonargparse import Namespace

from memtrain.cli.monitor_options import set_monitor, taken_monitor
from memtrain.errors import ConfigurationError

MONITOR = "memtrain.callbacks.monitor.MemorizationMonitor"


def configuration(*names: str) -> Namespace:
    """A configuration with these callbacks."""
    callbacks = [Namespace(class_path=name, init_args=Namespace(minimum_visits=6, sites="*")) for name in names]
    return Namespace(trainer=Namespace(callbacks=callbacks))


def test_its_words_are_taken_out_of_a_command_line() -> None:
    words = ["fit", "--monitor.sites", "*", "--config", "a.yaml", "--monitor.minimum_visits=8", "--x"]
    assert taken_monitor(words) == (
        ["--monitor.sites", "*", "--monitor.minimum_visits=8"],
        ["fit", "--config", "a.yaml", "--x"],
    )


def test_a_setting_reaches_the_monitor_alone_with_its_type() -> None:
    given = configuration("memtrain.callbacks.sample_skipping.SampleSkipping", MONITOR)
    set_monitor(given, ["--monitor.minimum_visits", "8", "--monitor.false_positive_rate=0.001"])
    other, monitor = (one.init_args for one in given.trainer.callbacks)
    assert other.minimum_visits == 6
    assert vars(monitor) == {"minimum_visits": 8, "sites": "*", "false_positive_rate": 0.001}


def test_without_a_monitor_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="without a monitor"):
        set_monitor(configuration("lightning.pytorch.callbacks.ModelCheckpoint"), ["--monitor.minimum_visits", "8"])
