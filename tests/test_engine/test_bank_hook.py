"""Banks and checkpoints: one process writes what all processes need."""

import copy
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook
from torch import nn
from torch.multiprocessing import get_context

from mmdfkd.engine.hooks.banks import BankHook
from mmdfkd.registry import MODELS
from mmdfkd.synthesis.bank import ReplayBank

STEPS, SAVED = 7, 2
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

    def __init__(self, folder, work_dir, seed=1) -> None:
        self.source = MODELS.build(copy.deepcopy(REPLAY))
        self.source.folder = folder
        # Nothing here asks the networks.
        teacher = SimpleNamespace(net=nn.Identity(), family='classifier', num_classes=5)
        self.source.prepare(teacher, seed=seed, image_size=(8, 8), device='cpu')
        self.runner = SimpleNamespace(
            model=nn.Sequential(self.source),
            hooks=[CheckpointHook(interval=SAVED, by_epoch=False, save_last=False)],
            _train_loop=None,
            work_dir=str(work_dir),
            logger=logging.getLogger('banks'),
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
        self.hook.after_train(self.runner)
        return self


def save(step, source, folder) -> None:
    """A checkpoint, as far as it is the source's."""
    torch.save(dict(dfkd_state=dict(source=source.state_dict())), f'{folder}/iter_{step}.pth')


def load(step, folder) -> dict:
    return torch.load(f'{folder}/iter_{step}.pth', weights_only=True)['dfkd_state']['source']


def test_a_run_that_never_steps_leaves_the_replaced_bank_as_it_was(tmp_path):
    folder = tmp_path / 'synthetic'
    first = Run(folder, tmp_path)
    first.source.fill(None)
    first.go_on()
    before = ReplayBank.latest_index(folder)
    second = Run(folder, tmp_path, seed=2)
    second.source.fill(None)
    assert ReplayBank.latest_index(folder) == before
    assert all((folder / segment['name']).is_file() for segment in before['segments'])
    second.go_on()
    assert ReplayBank.latest_index(folder)['segments'] != before['segments']


def _one_rank(rank: int, path: str, folder) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{path}/store', rank=rank, world_size=2
    )

    def saved(step, source):
        # As mmengine does it: the others do not even ask for the state.
        if rank == 0:
            save(step, source, path)

    through = Run(folder, path)
    through.source.fill(None)
    through.go_on(saved=saved)
    assert through.source.bank_index()['next_ids'].keys() == {str(rank)}, 'forgotten'
    torch.distributed.barrier()
    resumed = Run(folder, path)
    resumed.source.load_state_dict(load(SAVED, path))
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
    run = Run(tmp_path / 'synthetic', tmp_path)
    run.source.fill(None)
    run.go_on(saved=lambda step, source: kept.append(source.bank_index() == source.bank.index()))
    assert kept == [True] * 3 and run.source._gathered is None


def names(source) -> set[str]:
    return {segment['name'] for segment in source.bank.index()['segments']}


@pytest.mark.parametrize('keep', [1, 2])
def test_what_no_checkpoint_needs_is_deleted(tmp_path, keep):
    """And a run killed at any step resumes from any checkpoint that is there."""
    folder, needed = tmp_path / 'synthetic', {}

    def saved(step, source):
        save(step, source, tmp_path)
        needed[step] = names(source)
        (tmp_path / f'iter_{step - keep * SAVED}.pth').unlink(missing_ok=True)

    through = Run(folder, tmp_path)
    through.source.fill(None)
    through.go_on(saved=saved)
    kept = sorted(needed)[-keep:]
    there = {path.name for path in folder.glob('segment-*')}
    assert there == names(through.source).union(*(needed[step] for step in kept))
    assert len(there) < 1 + STEPS, 'some retired'
    for step in kept:
        disk = tmp_path / f'from{step}'
        shutil.copytree(folder, disk / 'synthetic')
        resumed = Run(disk / 'synthetic', disk)
        resumed.source.load_state_dict(load(step, tmp_path))
        resumed.go_on(step)
        assert resumed.source.bank.index() == through.source.bank.index()
        assert torch.equal(resumed.source.draw(ITEMS)[0], through.source.draw(ITEMS)[0])


def test_nothing_is_deleted_beside_a_checkpoint_that_cannot_be_read(tmp_path, caplog):
    (tmp_path / 'iter_0.pth').write_bytes(b'cut short')
    run = Run(tmp_path / 'synthetic', tmp_path)
    run.source.fill(None)
    with caplog.at_level(logging.WARNING, 'banks'):
        run.go_on(saved=lambda step, source: save(step, source, tmp_path))
    assert len(list((tmp_path / 'synthetic').glob('segment-*'))) == 1 + STEPS
    assert 'iter_0.pth' in caplog.text and 'stay on disk' in caplog.text


def test_a_finished_set_of_another_run_is_left_alone(tmp_path):
    """``LayoutInversionSource(scenes=...)`` draws from a folder that is not its own."""
    source = Run(tmp_path / 'synthetic', tmp_path).source
    assert source.owns_files
    source.bank.folder = tmp_path / 'another_run'
    assert not source.owns_files
