"""Copies between host and device."""

import torch

from memtrain.models.transfer import HostCopy, to_device


def test_a_copy_on_the_host_is_the_tensor_without_its_graph() -> None:
    tensor = torch.ones(2, requires_grad=True) * 2
    assert not HostCopy(tensor).read().requires_grad
    assert HostCopy(tensor).read().tolist() == [2.0, 2.0]


def test_a_small_tensor_goes_where_it_is_asked() -> None:
    assert to_device(torch.ones(2), torch.device("cpu")).tolist() == [1.0, 1.0]
    assert to_device(torch.ones(2), torch.device("meta")).device.type == "meta"
