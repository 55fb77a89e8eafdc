"""Banks and checkpoints: one process writes what all processes need."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook
from torch import nn
from torch.multiprocessing import get_context

from mmdfkd.engine.hooks.banks import BankHook
from mmdfkd.registry import MODELS

STEPS, SAVED = 5, 2
ITEMS = [dict(g=g) for g in range(12)]
#: Keeps more than it holds, so that the oldest images retire.
REPLAY = dict(
    type='mmdfkd.ReplaySource',
    source=dict(
        type='mmdfkd.PooledSource',
        renderer=dict(type='mmdfkd.NoiseRenderer'),
        pool_size=16,
        balance=False,
        augment=None,
        num_workers=0,
    ),
    prefill=4,
    every=1,
    batch=4,
    share=1.0,
    bank=dict(capacity=12),
)


class Run:
    """The source's part of a run: its steps, with the hook in its turns."""

    def __init__(self, folder) -> None:
        self.source = MODELS.build(copy.deepcopy(REPLAY))
        self.source.folder = folder
        # Nothing here asks the networks.
        teacher = SimpleNamespace(net=nn.Identity(), family='classifier', num_classes=5)
        self.source.prepare(teacher, seed=1, image_size=(8, 8), device='cpu')
        self.runner = SimpleNamespace(
            model=nn.Sequential(self.source),
            hooks=[CheckpointHook(interval=SAVED, by_epoch=False, save_last=False)],
            _train_loop=None,
            iter=0,
            max_iters=STEPS,
        )
        self.hook = BankHook()

    def go_on(self, first=0, saved=lambda step, source: None) -> 'Run':
        for self.runner.iter in range(first, STEPS):
            self.hook.before_train_iter(self.runner, self.runner.iter)
            self.source.refresh(None, None, self.runner.iter)
            self.hook.after_train_iter(self.runner, self.runner.iter)
            if (self.runner.iter + 1) % SAVED == 0:
                saved(self.runner.iter + 1, self.source)
        return self


def _one_rank(rank: int, path: str, folder) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{path}/store', rank=rank, world_size=2
    )

    def saved(step, source):
        # As mmengine does it: the others do not even ask for the state.
        if rank == 0:
            torch.save(source.state_dict(), f'{path}/iter_{step}.pth')

    through = Run(folder)
    through.source.fill(None)
    through.go_on(saved=saved)
    assert through.source.bank_index()['next_ids'].keys() == {str(rank)}, 'forgotten'
    torch.distributed.barrier()
    resumed = Run(folder)
    resumed.source.load_state_dict(torch.load(f'{path}/iter_{SAVED}.pth'))
    assert len(resumed.source.bank) == 6
    resumed.go_on(SAVED)
    banks = [run.source.bank for run in (through, resumed)]
    assert banks[0].ids.tolist() == banks[1].ids.tolist()
    assert torch.equal(*(bank.take(bank.ids)[0] for bank in banks))
    drawn = [run.source.draw(ITEMS)[0] for run in (through, resumed)]
    assert torch.equal(*drawn)
    torch.save([banks[0].ids.tolist(), drawn[0]], f'{path}/{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='device threads do not fork')
@pytest.mark.parametrize('files', [True, False])
def test_every_process_resumes_with_its_own_images(tmp_path, files):
    """In files, or in the checkpoint itself."""
    folder = tmp_path / 'synthetic' if files else None
    ctx = get_context('fork')
    ranks = [ctx.Process(target=_one_rank, args=(r, str(tmp_path), folder)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    (first, images), (second, others) = (torch.load(tmp_path / f'{r}.pt') for r in range(2))
    assert {i % 2 for i in first} == {0} and {i % 2 for i in second} == {1}
    assert not torch.equal(images, others)


def test_one_process_is_asked_for_nothing(tmp_path):
    """Its index is what it was without the hook."""
    kept = []
    run = Run(tmp_path)
    run.source.fill(None)
    run.go_on(saved=lambda step, source: kept.append(source.bank_index() == source.bank.index()))
    assert kept == [True, True] and run.source._gathered is None
