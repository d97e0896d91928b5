"""Updates of weights: their average, and states that are taken over whole or not at all."""

import pytest
import torch
from torch import nn

from audiolitefocus.training.updates import Updates


def test_a_moving_average_in_closed_form():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    updates = Updates(network, 0.0, average=0.9)
    updates.average["weight"].fill_(1.0)
    updates.done = 100  # in the beginning the average moves faster
    for _ in range(5):
        network.weight.grad = torch.zeros(1, 1)
        updates.update()
    torch.testing.assert_close(updates.average["weight"], torch.tensor([[0.9**5]]))
    with updates.averaged():
        assert torch.equal(network.weight, updates.average["weight"])
    assert not network.weight.any()


def test_every_parameter_has_its_rate():
    """A step of Adam is as long as the rate in the beginning, whatever the gradient."""
    network = nn.Linear(1, 1)
    for parameter in network.parameters():
        parameter.data.fill_(0.0)
        parameter.grad = torch.full_like(parameter, 0.1)
    Updates(network, 1e-3, rates={"bias": 1e-2}).update(0.5)
    torch.testing.assert_close(network.weight.data, torch.tensor([[-5e-4]]))
    torch.testing.assert_close(network.bias.data, torch.tensor([-5e-3]))


def test_a_state_has_the_buffers_and_fits_its_network_alone(tmp_path):
    network = nn.BatchNorm1d(1)
    network(torch.tensor([[1.0], [3.0]]))
    Updates(network, 0.0).save(tmp_path / "state.pt", seconds=2.0)
    fresh = nn.BatchNorm1d(1)
    assert Updates(fresh, 0.0).resume(tmp_path / "state.pt")["seconds"] == 2.0
    assert torch.equal(fresh.running_mean, network.running_mean) and fresh.running_mean.any()
    wider = nn.BatchNorm1d(4)  # to which the weights could be broadcast
    with pytest.raises(ValueError, match="of another training .its tensors have other names or"):
        Updates(wider, 0.0).resume(tmp_path / "state.pt")
    assert Updates(wider, 0.0).resume(tmp_path / "no state") == {}
