"""Parts are fixed for their stretch of the run and move before and afterwards."""

import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdfkd.engine import FreezeScheduleHook

STAGES = [
    dict(names=['backbone.blocks.0', 'neck'], until=0.5),
    dict(names='rpn_head', begin=0.5, until=0.8),
]


@HOOKS.register_module()
class MotionWatchHook(Hook):
    """Keeps the weights before each step, and which parts are in training mode."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.weights, self.training = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weights.append({k: v.clone() for k, v in runner.model.state_dict().items()})
        net = runner.model.student.net
        self.training.append((net.backbone.blocks[0].training, net.rpn_head.training))


def test_parts_stand_still_for_their_stretch_alone(tmp_path):
    cfg = toy.run_config(tmp_path)
    cfg['custom_hooks'] += [
        dict(type='mmdfkd.FreezeScheduleHook', stages=STAGES),
        dict(type='MotionWatchHook'),
    ]
    # Such that weight decay alone would show.
    cfg['optim_wrapper']['optimizer']['weight_decay'] = 0.1
    cfg['param_scheduler'] = []
    runner = toy.runner_of(cfg)
    runner.train()
    watch = next(h for h in runner.hooks if isinstance(h, MotionWatchHook))
    weights = [*watch.weights, runner.model.state_dict()]

    def moved(step):
        names = {k for k in weights[0] if not torch.equal(weights[step][k], weights[step + 1][k])}
        prefixes = ('backbone.blocks.0.', 'backbone.blocks.1.', 'neck.', 'rpn_head.', 'roi_head.')
        return tuple(any(k.startswith(p) for k in names) for p in prefixes)

    # Six steps: half of them are 3, and .8 lies between the fifth and the sixth.
    first, second, last = (0, 1, 0, 1, 1), (1, 1, 1, 0, 1), (1, 1, 1, 1, 1)
    assert [tuple(map(int, moved(i))) for i in range(6)] == [first] * 3 + [second] * 2 + [last]
    assert watch.training == [(False, True)] * 3 + [(True, False)] * 2 + [(True, True)]
    assert all(p.requires_grad for p in runner.model.student.net.parameters())
    cfg['custom_hooks'][-2]['stages'] = [dict(names=['backbone', 'nek'], until=1)]
    cfg['work_dir'] += '_wrong'
    with pytest.raises(ValueError, match="no part 'nek' .did you mean 'neck'"):
        toy.runner_of(cfg).train()


@pytest.mark.parametrize(
    ('stages', 'message'),
    [
        ([], 'no stage'),
        ([dict(names='neck')], r"not \['names'\]"),
        ([dict(names='neck', until=0.2, begin=0.2)], 'not 0.2 and 0.2'),
        ([dict(names='neck', until=30)], 'not 0.0 and 30'),
    ],
)
def test_bad_stages(stages, message):
    with pytest.raises(ValueError, match=message):
        FreezeScheduleHook(stages)
