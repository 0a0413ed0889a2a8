"""Logistic regression against scikit-learn's, and folds that leave nothing of a prompt on the other side."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from memtrain.functional.logistic import fit_logistic, logits, out_of_fold, stratified_folds


def sample(count: int, shift: float, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3 == 0
    return torch.randn(count, 3, generator=generator).double() + shift * labels[:, None], labels


@pytest.mark.parametrize("shift", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_weights_are_the_minimum(shift: float, penalty: float) -> None:
    """Also where the classes are separable."""
    features, labels = sample(60, shift)
    reference = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    reference.fit(features.numpy(), labels.numpy())
    expected = torch.tensor([*reference.coef_[0], *reference.intercept_])
    torch.testing.assert_close(fit_logistic(features, labels, penalty=penalty), expected, atol=1e-5, rtol=1e-5)


def test_one_class_or_no_penalty_is_refused() -> None:
    features, labels = sample(6, 1.0)
    with pytest.raises(ValueError, match="both classes"):
        fit_logistic(features, torch.ones(6))
    with pytest.raises(ValueError, match="penalty"):
        fit_logistic(features, labels, penalty=0.0)


def test_folds_are_even_and_keep_equal_keys_together_in_any_order() -> None:
    keys = [f"prompt {index // 2}" for index in range(60)]
    labels = torch.arange(60) < 20
    fold = stratified_folds(labels, keys, folds=5)
    for group in (labels, ~labels):
        assert fold[group].bincount(minlength=5).tolist() == [int(group.sum()) // 5] * 5
    assert torch.equal(fold[::2], fold[1::2])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    again = stratified_folds(labels[order], [keys[index] for index in order], folds=5)
    assert torch.equal(again, fold[order])
    assert not torch.equal(stratified_folds(labels, keys, folds=5, seed=1), fold)


def test_a_fold_is_scored_by_a_fit_that_never_saw_it() -> None:
    features, labels = sample(40, 1.0)
    fold = stratified_folds(labels, [str(index) for index in range(40)], folds=4)
    found = out_of_fold(features, labels, fold=fold)
    inside = fold == 2
    mean, deviation = features[~inside].mean(dim=0), features[~inside].std(dim=0, correction=0)
    weights = fit_logistic((features[~inside] - mean) / deviation, labels[~inside])
    torch.testing.assert_close(found[inside], logits((features[inside] - mean) / deviation, weights))
    spoiled = labels.clone()
    spoiled[inside] = ~spoiled[inside]
    torch.testing.assert_close(out_of_fold(features, spoiled, fold=fold)[inside], found[inside])


def test_a_feature_that_never_changes_is_harmless() -> None:
    features, labels = sample(30, 1.0)
    features[:, 1] = 7.0
    fold = stratified_folds(labels, [str(index) for index in range(30)], folds=3)
    assert torch.isfinite(out_of_fold(features, labels, fold=fold)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("truth", [[], [True], [False], [True, True]])
def test_one_class_is_refused_whatever_its_size(truth: list[bool]) -> None:
    labels, count = torch.tensor(truth, dtype=torch.bool), len(truth)
    features = torch.randn(count, 2)
    folds = stratified_folds(labels, [f"k{row}" for row in range(count)], folds=2).tolist()
    assert sorted(folds) == list(range(count))
    with pytest.raises(ValueError, match="both classes"):
        fit_logistic(features, labels)
    fold = torch.arange(count)
    if count:
        with pytest.raises(ValueError, match="both classes are needed outside of each fold"):
            out_of_fold(features, labels, fold=fold)
    else:
        assert out_of_fold(features, labels, fold=fold).shape == (0,)


@pytest.mark.filterwarnings("error")
def test_two_samples_of_two_classes_are_fitted_but_leave_nothing_to_judge() -> None:
    features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([False, True])
    found = logits(features, fit_logistic(features, labels))
    assert found[0] < 0 < found[1]
    for fold in (torch.tensor([0, 0]), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="outside of each fold"):
            out_of_fold(features, labels, fold=fold)
