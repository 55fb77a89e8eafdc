import argparse
import importlib.util
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn
from torch.utils.data import Dataset

from mmdfkd.utils.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    HistoryState,
    UnsafeCheckpointError,
    read_checkpoint,
    register_local_loader,
    restore_history,
    save_tensors,
    sha256,
    unwrap_state_dict,
    verify_sha256,
)


@pytest.fixture(autouse=True)
def _registered():
    register_local_loader()


class Gadget:
    """Pickles as a call."""

    def __init__(self, call, *args):
        self.call = (call, args)

    def __reduce__(self):
        return self.call


def global_call(name: str, *args) -> bytes:
    """A pickle of protocol 2 that calls a global by name."""
    module, _, attribute = name.rpartition('.')
    body = pickle.dumps(args, 2)[2:-1]
    return (
        b'\x80\x02}'
        + pickle.dumps('w', 2)[2:-1]
        + f'c{module}\n{attribute}\n'.encode()
        + body
        + b'Rs.'
    )


def torch_zip(path: Path, pkl: bytes, storages: dict | None = None, **extra: bytes) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', pkl)
        archive.writestr('a/version', b'3\n')
        archive.writestr('a/byteorder', b'little')
        for key, data in (storages or {}).items():
            archive.writestr(f'a/data/{key}', data)
    return path


def legacy(path: Path, content) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


WEIGHTS = {
    'backbone.w': torch.arange(6.0).reshape(2, 3),
    'head.b': torch.ones(2, dtype=torch.float16),
}


class Tiny(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.layer(inputs).square().mean()}


class Points(Dataset):
    metainfo = {'classes': ('a', 'b'), 'extra': ConfigDict(nested={'a': 1})}

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {'inputs': torch.full((2,), float(index))}


def tiny_runner(work_dir, max_iters, name, **kwargs):
    # A scheduler without an end takes the run's, and resumes with the shorter run's.
    schedule = {'by_epoch': False, 'end': 20}
    torch.manual_seed(0)
    return Runner(
        Tiny(),
        str(work_dir),
        train_dataloader={
            'batch_size': 2,
            'sampler': {'type': 'InfiniteSampler', 'shuffle': False},
            'dataset': Points(),
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'by_epoch': False, 'max_iters': max_iters},
        optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.01}},
        param_scheduler=[
            {'type': 'MultiStepLR', 'milestones': [1], **schedule},
            {'type': 'OneCycleLR', 'eta_max': 0.1, 'total_steps': 20, **schedule},
        ],
        default_hooks={
            'checkpoint': {'type': 'CheckpointHook', 'interval': 2, 'by_epoch': False},
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        custom_hooks=[{'type': 'EMAHook'}],
        default_scope='mmengine',
        experiment_name=name,
        **kwargs,
    )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A real run of two iterations, and its checkpoint."""
    work_dir = tmp_path_factory.mktemp('run')
    runner = tiny_runner(work_dir, 2, 'first')
    runner.train()
    return runner, work_dir / 'iter_2.pth'


def test_a_checkpoint_of_a_runner_is_read_with_inert_histories(run):
    runner, path = run
    found = read_checkpoint(path)
    # The averaging hook saves its weights as the model's, and the model's beside them.
    saved = found['ema_state_dict']['module.layer.weight']
    assert torch.equal(saved, runner.model.layer.weight)
    assert found['meta']['iter'] == 2
    assert found['meta']['dataset_meta'] == {'classes': ('a', 'b'), 'extra': {'nested': {'a': 1}}}
    history = found['message_hub']['log_scalars']['train/loss']
    assert type(history) is HistoryState
    real = runner.message_hub.get_scalar('train/loss')
    np.testing.assert_array_equal(history._log_history, real.data[0])
    assert len(real.data[0]) == 2
    restored = restore_history(found)['message_hub']['log_scalars']['train/loss']
    assert type(restored) is HistoryBuffer
    assert restored.mean() == real.mean()
    assert restored.statistics('current') == real.data[0][-1]


def test_a_run_resumes_and_continues(run, tmp_path):
    runner, path = run
    straight = tiny_runner(tmp_path / 'straight', 4, 'straight')
    straight.train()
    resumed = tiny_runner(tmp_path, 4, 'second', load_from=str(path), resume=True)
    resumed.train()
    assert resumed.iter == 4
    history = resumed.message_hub.get_scalar('train/loss')
    assert type(history) is HistoryBuffer
    assert len(history.data[0]) == 4
    np.testing.assert_array_equal(
        history.data[0][:2], runner.message_hub.get_scalar('train/loss').data[0]
    )
    # The scheduler's method, which the file names by getattr, is the fresh one's.
    assert callable(resumed.param_schedulers[1].anneal_func)
    state = read_checkpoint(tmp_path / 'iter_4.pth')['optimizer']['state']
    assert state[0]['step'] == 4
    assert not torch.equal(resumed.model.layer.weight, runner.model.layer.weight)
    assert torch.equal(resumed.model.layer.weight, straight.model.layer.weight)


@pytest.mark.parametrize('save', ['zip', 'legacy'])
def test_torch_files_of_both_formats(tmp_path, save):
    path = tmp_path / 'w.pth'
    content = {
        'model': OrderedDict(WEIGHTS),
        'args': argparse.Namespace(lr=0.1, out=Path('a/b')),
        'score': np.float64(0.5),
        'table': np.arange(6, dtype=np.int16).reshape(2, 3).T,
        'counts': defaultdict(list, a=[1]),
        'view': WEIGHTS['backbone.w'][1],
        'parameter': nn.Parameter(torch.ones(2)),
        'cfg': ConfigDict(a={'b': 1}),
        'names': np.array(['x', 'yz']),
    }
    if save == 'legacy':
        legacy(path, content)
    else:
        # A type that the older format has no storage for.
        torch.save({**content, 'uint': torch.ones(2, dtype=torch.uint16)}, path)
    found = read_checkpoint(path)
    assert torch.equal(found['model']['backbone.w'], WEIGHTS['backbone.w'])
    assert found['args'] == {'lr': 0.1, 'out': 'a/b'}
    assert found['score'] == 0.5
    np.testing.assert_array_equal(found['table'], content['table'])
    assert found['counts'] == {'a': [1]}
    assert found['view'].tolist() == [3, 4, 5]
    assert isinstance(found['parameter'], nn.Parameter)
    assert save == 'legacy' or found['uint'].dtype == torch.uint16
    assert found['cfg'] == {'a': {'b': 1}}
    assert found['names'].tolist() == ['x', 'yz']


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
def test_detectron2_pickles_become_tensors(tmp_path, protocol):
    path = tmp_path / 'model_final.pkl'
    arrays = {
        'w': np.arange(6, dtype=np.float32).reshape(2, 3),
        'f': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'big': np.arange(3, dtype='>i4'),
        'n': np.int64(3),
    }
    path.write_bytes(
        pickle.dumps({'model': arrays, '__author__': 'x', 'matching_heuristics': True}, protocol)
    )
    found = read_checkpoint(path)
    assert found['matching_heuristics'] is True
    del found['model']['n']
    weights = unwrap_state_dict(found)
    assert all(isinstance(v, torch.Tensor) for v in weights.values())
    assert torch.equal(weights['w'], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(weights['f'].float(), weights['w'])
    assert weights['big'].tolist() == [0, 1, 2]


GADGETS = {
    'os.system': ('touch {hit}',),
    'posix.system': ('touch {hit}',),
    'builtins.eval': ("open('{hit}', 'w')",),
    'builtins.exec': ("open('{hit}', 'w')",),
    'builtins.open': ('{hit}', 'w'),
    'subprocess.Popen': (['touch', '{hit}'],),
    'torch.load': ('{hit}',),
    'torch.hub.load': ('{hit}', 'x'),
    'torch.storage._load_from_bytes': (b'x',),
    'builtins.bytearray': (10**12,),
    'functools.partial': (print,),
    'mmengine.fileio.load': ('{hit}',),
}


@pytest.mark.parametrize('name', GADGETS)
@pytest.mark.parametrize('form', ['zip', 'legacy', 'pkl', 'plain pth'])
def test_a_file_that_wants_to_execute_is_refused_by_name(tmp_path, name, form):
    hit = tmp_path / 'hit'
    args = tuple(a.format(hit=hit) if isinstance(a, str) else a for a in GADGETS[name])
    pkl = global_call(name, *args)
    path = tmp_path / ('bad.pkl' if form == 'pkl' else 'bad.pth')
    if form == 'zip':
        torch_zip(path, pkl)
    elif form == 'legacy':
        whole = legacy(path, {}).read_bytes()
        marker = pickle.dumps({}, 2)
        path.write_bytes(whole.replace(marker, pkl, 1))
    else:
        path.write_bytes(pkl)
    with pytest.raises(UnsafeCheckpointError) as error:
        read_checkpoint(path)
    assert name in str(error.value)
    assert str(path) in str(error.value)
    assert not hit.exists()


@pytest.mark.parametrize('form', ['zip', 'pkl'])
@pytest.mark.parametrize(
    'owner',
    [
        'cos\nsystem\n',
        'ctorch\nload\n',
        'ccollections\nOrderedDict\n',
        '}',
        'cbuiltins\ngetattr\n',
        'ctorch\nSize\n',
    ],
)
def test_getattr_leads_nowhere(tmp_path, form, owner):
    pkl = b'\x80\x02}U\x01wcbuiltins\ngetattr\n' + owner.encode() + b'U\x0b__globals__\x86Rs.'
    path = tmp_path / 'bad.pkl'
    torch_zip(path, pkl) if form == 'zip' else path.write_bytes(pkl)
    with pytest.raises(UnsafeCheckpointError, match=r'bad\.pkl asks for'):
        read_checkpoint(path)


def test_getattr_of_a_history_gives_nothing_to_call(tmp_path):
    history = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
    # getattr(getattr(HistoryBuffer, 'mean'), '__globals__'), and a call of what getattr returned.
    chain = (
        b'\x80\x02}U\x01wcbuiltins\ngetattr\ncbuiltins\ngetattr\n'
        + history
        + b'U\x04mean\x86RU\x0b__globals__\x86Rs.'
    )
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(torch_zip(tmp_path / 'chain.pth', chain))
    call = b'\x80\x02}U\x01wcbuiltins\ngetattr\n' + history + b'U\x04mean\x86RU\x01x\x85Rs.'
    with pytest.raises(CheckpointError):
        read_checkpoint(torch_zip(tmp_path / 'call.pth', call))


def test_a_state_cannot_change_a_class(tmp_path):
    # BUILD on the class HistoryState itself, and on torch.Tensor.
    for form, owner in (
        ('pkl', b'cmmengine.logging.history_buffer\nHistoryBuffer\n'),
        ('pth', b'ctorch\nTensor\n'),
    ):
        pkl = b'\x80\x02}U\x01w' + owner + b'}}U\x04evilK\x01s\x86bs.'
        path = tmp_path / f'bad.{form}'
        path.write_bytes(pkl) if form == 'pkl' else torch_zip(path, pkl)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    assert not hasattr(HistoryState, 'evil')
    assert not hasattr(torch.Tensor, 'evil')


def test_trust_of_other_code_is_not_ours(tmp_path):
    path = tmp_path / 'ordinary.pth'
    torch.save(WEIGHTS, path)
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([(os.getcwd, 'os.getcwd'), (print, 'builtins.print')])
    try:
        read_checkpoint(path)
        assert (print, 'builtins.print') in torch.serialization.get_safe_globals()
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(torch_zip(tmp_path / 'bad.pth', global_call('builtins.print', 'x')))
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_a_whole_module_is_refused(tmp_path):
    path = tmp_path / 'module.pth'
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UnsafeCheckpointError, match='torch.nn.modules.linear.Linear'):
        read_checkpoint(path)


def storage_pickle(numel: int, size: tuple = (2,)) -> bytes:
    """`{'w': tensor of size over a storage of numel floats}`."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return ('storage', torch.FloatStorage, '0', 'cpu', numel) if obj == 'STORAGE' else None

    import io

    buffer = io.BytesIO()
    call = Gadget(torch._utils._rebuild_tensor_v2, 'STORAGE', 0, size, (1,), False, OrderedDict())
    Pickler(buffer, 2).dump({'w': call})
    return buffer.getvalue()


def test_a_storage_larger_than_its_record_is_refused(tmp_path):
    good = torch_zip(tmp_path / 'good.pth', storage_pickle(2), {'0': b'\0' * 8})
    assert read_checkpoint(good)['w'].tolist() == [0, 0]
    lying = torch_zip(tmp_path / 'lying.pth', storage_pickle(10**12, (10**12,)), {'0': b'\0' * 8})
    with pytest.raises(
        CorruptCheckpointError, match=r'lying\.pth declares 4,000,000,000,000 bytes'
    ):
        read_checkpoint(lying)
    beyond = torch_zip(tmp_path / 'beyond.pth', storage_pickle(2, (1000,)), {'0': b'\0' * 8})
    with pytest.raises(CorruptCheckpointError, match=r'beyond\.pth'):
        read_checkpoint(beyond)


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', pickle.dumps({}, 2))
        archive.writestr('a/data/0', b'\0' * 10**7)
    with pytest.raises(CorruptCheckpointError, match='declares 10,000,'):
        read_checkpoint(path)


def test_two_records_of_one_name_are_refused(tmp_path):
    path = torch_zip(tmp_path / 'two.pth', pickle.dumps({}, 2))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('a/DATA.pkl', global_call('os.system', 'x'))
    with pytest.raises(CorruptCheckpointError, match='two records'):
        read_checkpoint(path)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pkl'])
@pytest.mark.parametrize('keep', [0.1, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path, form, keep):
    path = tmp_path / ('w.pkl' if form == 'pkl' else 'w.pth')
    big = {'w': torch.rand(1000)}
    if form == 'pkl':
        path.write_bytes(pickle.dumps({'w': np.random.rand(1000)}))
    else:
        torch.save(big, path, _use_new_zipfile_serialization=form == 'zip')
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CorruptCheckpointError, match=path.name):
        read_checkpoint(path)


def test_a_legacy_file_that_declares_too_much_is_refused(tmp_path):
    path = legacy(tmp_path / 'w.pth', {'w': torch.zeros(1000)})
    whole = path.read_bytes()
    honest, lying = b'M' + struct.pack('<H', 1000), b'J' + struct.pack('<i', 2**31 - 1)
    assert honest in whole
    path.write_bytes(whole.replace(honest, lying, 1))
    with pytest.raises(CorruptCheckpointError, match='declares 8,589,934,588 bytes'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'pkl',
    [
        b'\x80\x04\x8e' + struct.pack('<Q', 2**40) + b'x.',
        b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'x.',
        b'\x80\x04\x95' + struct.pack('<Q', 2**40) + b'x.',
        b'\x80\x02}r\xff\xff\xff\xff',
        b'\x80\x02]',
        b'not a checkpoint',
        b'',
    ],
    ids=['bytes', 'bytearray', 'frame', 'memo', 'cut', 'text', 'empty'],
)
@pytest.mark.parametrize('suffix', ['.pkl', '.pth'])
def test_lying_pickles_allocate_nothing(tmp_path, pkl, suffix):
    path = tmp_path / f'bad{suffix}'
    path.write_bytes(pkl)
    with pytest.raises(CorruptCheckpointError, match='bad'):
        read_checkpoint(path)


def test_numpy_arrays_hold_what_they_declare(tmp_path):
    path = tmp_path / 'w.pkl'
    honest = pickle.dumps({'w': np.zeros(7, np.float32)}, 2)
    assert b'K\x07' in honest
    path.write_bytes(honest.replace(b'K\x07', b'K\x7f', 1))
    with pytest.raises(CorruptCheckpointError, match='28 bytes'):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({'w': np.array([{}, 1], dtype=object)}, 2))
    with pytest.raises(CorruptCheckpointError, match="'O8'"):
        read_checkpoint(path)


def test_a_self_referring_file_is_read(tmp_path):
    loop = {'w': torch.ones(1)}
    loop['self'] = loop
    torch.save(loop, tmp_path / 'loop.pth')
    found = read_checkpoint(tmp_path / 'loop.pth')
    assert found['self'] is found


def test_missing_file_and_size_limit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth.*Check the path'):
        read_checkpoint(tmp_path / 'nowhere.pth')
    torch.save(WEIGHTS, tmp_path / 'w.pth')
    with pytest.raises(CorruptCheckpointError, match='more than the 100 allowed'):
        read_checkpoint(tmp_path / 'w.pth', max_bytes=100)
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(CorruptCheckpointError, match='holds a list'):
        read_checkpoint(tmp_path / 'list.pth')


CODE = "import os\nos.system('touch {hit}')\nmodel = dict(type='A')"


@pytest.mark.parametrize(
    'text',
    [
        CODE,
        "model = __import__('os').system('touch {hit}')",
        'model = [c for c in ().__class__.__bases__]',
        "a = '{{{{ $HOME }}}}'",
        "_base_ = '{hit}.py'",
        'dict = (lambda: 0)',
        'x = (1',
    ],
)
def test_config_texts_that_are_code_are_left_out(tmp_path, text):
    text = text.format(hit=tmp_path / 'hit')
    path = tmp_path / 'w.pth'
    torch.save(
        {
            'state_dict': WEIGHTS,
            'meta': {'config': text, 'cfg': text, 'epoch': 1},
            'message_hub': {'runtime_info': {'cfg': text}},
        },
        path,
    )
    with pytest.warns(UserWarning, match=r'w\.pth: its config text'):
        found = read_checkpoint(path)
    assert found['meta'] == {'epoch': 1}
    assert found['message_hub'] == {'runtime_info': {}}


def test_config_texts_that_are_data_stay(run):
    runner, path = run
    assert read_checkpoint(path)['meta']['cfg'] == runner.cfg.pretty_text
    text = (
        "model = dict(type='A', scale=-1.5, sizes=[(1, 2)], names={'a': None}, **{'b c': True})\n"
    )
    torch.save({'meta': {'cfg': text}}, path.parent / 'text.pth')
    assert read_checkpoint(path.parent / 'text.pth')['meta']['cfg'] == text


def test_mmengine_refuses_a_malicious_file_everywhere(tmp_path):
    hit = tmp_path / 'hit'
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': Gadget(os.system, f'touch {hit}')}, path)
    with pytest.raises(UnsafeCheckpointError, match='system'):
        load_checkpoint(Tiny(), str(path))
    with pytest.raises(UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(str(path))
    with pytest.raises(UnsafeCheckpointError):
        mmengine_checkpoint._load_checkpoint_with_prefix('backbone', str(path))
    with pytest.raises(UnsafeCheckpointError):
        tiny_runner(tmp_path, 4, 'bad resume', load_from=str(path), resume=True).train()
    with pytest.raises(UnsafeCheckpointError):
        tiny_runner(tmp_path, 4, 'bad load_from', load_from=str(path)).train()
    model = Tiny()
    model.init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    with pytest.raises(UnsafeCheckpointError):
        model.init_weights()
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):
        with path.open('rb') as file, pytest.raises(UnsafeCheckpointError):
            mmengine_checkpoint._safe_torch_load(file)
    assert not hit.exists()
    # The file does what it says where nothing is in its way, or the test would prove nothing.
    torch.load(path, weights_only=False)
    assert hit.exists()


def test_addresses_are_downloaded_and_read_by_us(tmp_path, monkeypatch):
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    served = tmp_path / 'served'
    served.mkdir()
    torch.save({'state_dict': WEIGHTS}, served / 'good-0123abcd.pth')
    for i in (1, 2):
        (served / str(i)).mkdir()
        torch.save({'w': torch.tensor([i])}, served / str(i) / 'model.pth')
    torch.save({'state_dict': Gadget(os.system, f'touch {tmp_path / "hit"}')}, served / 'bad.pth')
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=str(served))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    address = f'http://127.0.0.1:{server.server_port}'
    try:
        assert torch.equal(
            read_checkpoint(f'{address}/good-0123abcd.pth')['state_dict']['head.b'],
            WEIGHTS['head.b'],
        )
        # As torch names it, where the name is the file's own.
        assert (tmp_path / 'hub' / 'checkpoints' / 'good-0123abcd.pth').is_file()
        assert 'state_dict' in CheckpointLoader.load_checkpoint(f'{address}/good-0123abcd.pth')
        for i in (1, 2, 1):
            assert read_checkpoint(f'{address}/{i}/model.pth')['w'] == i
        kept = {path.suffix for path in (tmp_path / 'hub' / 'checkpoints').glob('model-*')}
        assert kept == {'.pth'}
        for load in (
            read_checkpoint,
            CheckpointLoader.load_checkpoint,
            mmengine_checkpoint.load_from_http,
        ):
            with pytest.raises(UnsafeCheckpointError):
                load(f'{address}/bad.pth')
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / 'hit').exists()


def test_safetensors(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path = tmp_path / 'w.safetensors'
    path.write_bytes(struct.pack('<Q', len(header)) + header + struct.pack('<2f', 1, 2))
    if importlib.util.find_spec('safetensors') is None:
        with pytest.raises(ImportError, match='pip install safetensors'):
            read_checkpoint(path)
        return
    assert read_checkpoint(path)['w'].tolist() == [1, 2]
    for lie in (
        struct.pack('<Q', 2**60) + header,
        struct.pack('<Q', len(header)) + header + b'\0' * 4,
        b'\0',
    ):
        path.write_bytes(lie)
        with pytest.raises(CorruptCheckpointError, match=r'w\.safetensors'):
            read_checkpoint(path)


@pytest.mark.parametrize(
    'wrap', [lambda w: {'state_dict': w}, lambda w: {'model': w, 'epoch': 1}, lambda w: w]
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_unwrap_state_dict(wrap, prefix):
    weights = unwrap_state_dict(wrap({prefix + k: v for k, v in WEIGHTS.items()}))
    assert list(weights) == list(WEIGHTS)
    assert all(weights[k] is WEIGHTS[k] for k in WEIGHTS)


def test_unwrap_state_dict_keeps_a_partial_prefix_and_versions():
    assert list(unwrap_state_dict({'module.a': torch.ones(1), 'b': torch.ones(1)})) == [
        'module.a',
        'b',
    ]
    assert unwrap_state_dict({'state_dict': nn.BatchNorm1d(2).state_dict()})._metadata[''] == {
        'version': 2
    }
    with pytest.raises(CheckpointError, match='epoch'):
        unwrap_state_dict({'epoch': 1, 'optimizer': {}})
    with pytest.raises(CheckpointError, match='empty'):
        unwrap_state_dict({})


def test_saved_tensors_need_no_allow_list(tmp_path):
    path = tmp_path / 'new' / 'student.pth'
    big = torch.zeros(10000)
    save_tensors(
        {'a': nn.Parameter(torch.ones(2)), 'view': big[:2]}, path, {'classes': ('x',), 'seed': 1}
    )
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        found = torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(before)
    assert found['meta'] == {'classes': ['x'], 'seed': 1}
    assert found['state_dict']['a'].tolist() == [1, 1]
    assert path.stat().st_size < 5000
    assert os.listdir(path.parent) == ['student.pth']
    assert read_checkpoint(path)['state_dict']['view'].tolist() == [0, 0]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'student.pth'
    save_tensors(WEIGHTS, path)
    digest = sha256(path)
    with pytest.raises(TypeError, match='not: b'):
        save_tensors({'b': 1}, path)
    with pytest.raises(TypeError, match='plain data'):
        save_tensors(WEIGHTS, path, {'a': object()})

    def broken(content, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        save_tensors(WEIGHTS, path)
    assert sha256(path) == digest
    assert os.listdir(tmp_path) == ['student.pth']


def test_checksums(tmp_path):
    path = tmp_path / 'f'
    path.write_bytes(b'abc')
    digest = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert sha256(path) == digest
    verify_sha256(path, digest)
    verify_sha256(path, digest[:8].upper())
    with pytest.raises(CorruptCheckpointError, match=f'{digest}, not 00000000'):
        verify_sha256(path, '00000000')
    with pytest.raises(ValueError, match='8 digits'):
        verify_sha256(path, '')
