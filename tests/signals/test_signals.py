"""One contract over every signal: shapes, columns, direction; and each one's formula."""

import importlib
import math
import pkgutil

import pytest
import torch

import memtrain.signals
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.models.observation import Observation
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import FittedSignal, Signal
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.guidance_norm import GuidanceNorm
from memtrain.signals.readings import Readings
from memtrain.signals.value_outliers import ValueOutliers

for module in pkgutil.iter_modules(memtrain.signals.__path__):
    importlib.import_module(f"memtrain.signals.{module.name}")
SIGNALS = sorted(
    (kind for kind in (*Signal.__subclasses__(), *FittedSignal.__subclasses__()) if kind is not FittedSignal),
    key=lambda kind: kind.name,
)
SITES = ["down.attn2", "up.attn2"]


def observation(batch: int = 3) -> Observation:
    attention = {site: torch.softmax(torch.randn(batch, 7), -1) for site in SITES}
    return Observation(
        [str(index) for index in range(batch)],
        timesteps=torch.arange(batch),
        token_attention=attention,
        gradient=torch.randn(batch, 4, 2, 2),
        prediction=torch.randn(batch, 4, 2, 2),
        unconditional=torch.randn(batch, 4, 2, 2),
        neuron_activation={site: torch.rand(batch, 6) for site in SITES},
    )


@pytest.mark.parametrize("kind", SIGNALS)
def test_every_signal_keeps_the_contract(kind: type[Signal]) -> None:
    signal, seen = kind(), observation()
    if isinstance(signal, FittedSignal):
        signal.fit([observation(), observation()])
    values = signal(seen)
    columns = signal.columns(SITES)
    assert values.shape == (3, len(columns))
    assert not values.requires_grad
    assert torch.isfinite(values).all()
    assert all(column.split(".")[0] == signal.name for column in columns)
    assert signal.memorized_when in ("low", "high", "unknown")
    assert torch.equal(signal.relative(values, values), torch.zeros_like(values))
    torch.testing.assert_close(
        signal.relative(values, 2 * values), signal.absolute(values) - signal.absolute(2 * values)
    )


def test_loss_from_the_gradient_of_weighted_and_scaled_losses() -> None:
    prediction, target = torch.randn(3, 4, 2, 2, requires_grad=True), torch.randn(3, 4, 2, 2)
    each = (prediction - target).square().flatten(1).mean(1)
    weight = torch.tensor([1.0, 0.3, 2.0])
    (gradient,) = torch.autograd.grad((weight * each).mean() * 0.5, prediction)
    seen = Observation(["a", "b", "c"], gradient=gradient, loss_scale=0.5, loss_weight=weight)
    torch.testing.assert_close(DenoisingLoss()(seen)[:, 0], each.detach())


def test_a_known_loss_is_taken_as_it_is_and_neither_is_an_error() -> None:
    seen = Observation(["a"], sample_loss=torch.tensor([0.25]))
    assert DenoisingLoss()(seen).tolist() == [[0.25]]
    with pytest.raises(ProbeError, match="neither a loss nor a gradient"):
        DenoisingLoss()(Observation(["a"]))


def test_a_memorized_sample_has_a_negative_relative_loss() -> None:
    signal = DenoisingLoss()
    assert signal.memorized_when == "low"
    relative = signal.relative(torch.tensor([[0.05]]), torch.tensor([[0.2]]))
    assert relative.item() == pytest.approx(math.log(0.25))


def test_entropy_is_per_site_and_never_averaged() -> None:
    attention = {"down.attn2": torch.full((1, 8), 1 / 8), "up.attn2": torch.eye(8)[:1]}
    values = AttentionEntropy()(Observation(["a"], token_attention=attention))
    torch.testing.assert_close(values, torch.tensor([[math.log(8), 0.0]]))


def test_guidance_norm_is_high_when_the_caption_matters_and_nan_when_not_measured() -> None:
    signal = GuidanceNorm(every=2)
    assert signal.memorized_when == "high"
    assert signal.unconditional_every == 2
    seen = Observation(["a", "b"], prediction=torch.tensor([[3.0, 4.0], [0.0, 1.0]]), unconditional=torch.zeros(2, 2))
    assert signal(seen).tolist() == [[5.0], [1.0]]
    assert signal.relative(torch.tensor([[4.0]]), torch.tensor([[2.0]])).item() == pytest.approx(math.log(2))
    seen.unconditional = None
    assert signal(seen).isnan().all()
    with pytest.raises(ProbeError, match="no prediction"):
        signal(Observation(["a"]))


def test_value_outliers_are_the_largest_z_scores_against_the_reference_captions() -> None:
    reference = torch.randn(50, 4)
    signal = ValueOutliers()
    with pytest.raises(ProbeError, match="not fitted"):
        signal(Observation(["a"], neuron_activation={"up": reference[:1]}))
    signal.fit([Observation((), neuron_activation={"up": part}) for part in reference.split(20)])
    unusual = reference.mean(0) + torch.tensor([0.0, 0.5, -7.0, 1.0]) * reference.std(0)
    values = signal(Observation(["a"], neuron_activation={"up": unusual[None]}))
    torch.testing.assert_close(values, torch.tensor([[7.0]]))
    again = ValueOutliers()
    again.load_state_dict(signal.state_dict())
    assert torch.equal(again(Observation(["a"], neuron_activation={"up": unusual[None]})), values)
    with pytest.raises(ConfigurationError, match="saw 0 reference captions"):
        ValueOutliers().fit([])


def test_what_is_not_finite_is_no_comparison() -> None:
    readings = Readings([DenoisingLoss()], SITES)
    values = torch.tensor([[math.inf], [math.nan], [2.0]])
    assert readings.compare(values, None).isnan().tolist() == [[True], [True], [False]]
    base = torch.tensor([[1.0], [1.0], [math.inf]])
    assert readings.compare(values, base).isnan().all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_sample_one_and_two_have_as_many_values(count: int) -> None:
    seen = Observation(
        ["a", "b"][:count],
        sample_loss=torch.ones(count),
        token_attention={site: torch.full((count, 7), 1 / 7) for site in SITES},
    )
    readings = Readings([DenoisingLoss(), AttentionEntropy()], SITES)
    values = readings.read(seen)
    assert values.shape == (count, 3)
    assert readings.compare(values, values).tolist() == [[0.0, 0.0, 0.0]] * count


@pytest.mark.parametrize("count", [0, 1, 2])
def test_neurons_are_unusual_among_two_captions_at_least(count: int) -> None:
    signal, observed = ValueOutliers(), [Observation(["a"], neuron_activation={"up": torch.ones(1, 4)})] * count
    if count < 2:
        with pytest.raises(ConfigurationError, match=f"saw {count} reference captions"):
            signal.fit(observed)
    else:
        signal.fit(observed)
        assert signal(observed[0]).tolist() == [[0.0]], "no neuron differs"
