"""What recomputes its activations is found, switched off and restored."""

import pytest
import toy
from torch import nn

from mmdfkd.utils.recompute import recomputing, stop_recomputing, without_recomputing


class Block(nn.Module):
    """A module with both libraries' switches."""

    def __init__(self, with_cp, use_checkpoint=False):
        super().__init__()
        self.with_cp, self.use_checkpoint = with_cp, use_checkpoint


def test_switches_are_restored_exactly():
    net = nn.Sequential(Block(True), Block(False, True), Block(2), nn.Linear(1, 1))
    on = [(net[0], 'with_cp'), (net[1], 'use_checkpoint'), (net[2], 'with_cp')]
    assert recomputing(net) == on
    # A network that is named twice, and an error inside.
    with pytest.raises(KeyError), without_recomputing(net, net):
        assert recomputing(net) == []
        raise KeyError
    assert recomputing(net) == on and net[2].with_cp == 2 and net[0].use_checkpoint is False
    stop_recomputing(net)
    assert recomputing(net) == [] and net[0].with_cp is False
    assert not hasattr(net[3], 'with_cp')


def test_this_projects_own_backbone_goes_on():
    """It recomputes without reentry, which any backward takes."""
    model = toy.detector_model()
    model['backbone']['with_cp'] = True
    net = toy.build(model)
    stop_recomputing(net)
    assert recomputing(net) == [] and net.backbone.with_cp
