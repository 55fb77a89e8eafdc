"""A generator in a whole run: its own optimiser, what it asks of the teacher, and a resumed run
that ends bit-equal."""

import json
import shutil

import torch
import toy

SOURCE = dict(
    type='mmdfkd.GeneratorSource',
    generator=dict(type='mmdfkd.ConvGenerator', noise_dims=8, channels=(8, 8, 8), base=6),
    batch=2,
    every=2,
    share=0.5,
    bank=dict(capacity=8),
)


def _run(folder, **changes) -> dict:
    # Weight decay, which a generator among the Runner's parameters would suffer from.
    optimizer = dict(type='AdamW', lr=1e-2, weight_decay=0.5)
    cfg = toy.run_config(
        folder,
        model_source=SOURCE,
        optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer),
        **changes,
    )
    cfg['train_cfg'] = dict(cfg['train_cfg'], max_iters=5)
    cfg['custom_hooks'] = [*cfg['custom_hooks'], dict(type='mmdfkd.TeacherPassesHook')]
    cfg['default_hooks']['checkpoint']['interval'] = 1
    toy.runner_of(cfg).train()
    return torch.load(f'{cfg["work_dir"]}/iter_5.pth', weights_only=False)


def test_a_resumed_run_ends_bit_equal(tmp_path):
    through = _run(tmp_path)
    assert not any('generator' in key or 'source' in key for key in through['state_dict'])
    third, fourth = (
        torch.load(tmp_path / 'run' / f'iter_{i}.pth', weights_only=False)['dfkd_state']['source']
        for i in (3, 4)
    )
    now = through['dfkd_state']['source']
    # Rounds before steps 0, 2 and 4; between them nothing may move the generator.
    assert [int(state['rounds']) for state in (third, fourth, now)] == [2, 2, 3]
    assert now['_extra_state']['optimizer']['state']
    weights = [key for key in now if key.startswith('generator.')]
    assert all(torch.equal(third[key], fourth[key]) for key in weights)
    assert any(not torch.equal(now[key], fourth[key]) for key in weights)
    # The aligners are fitted on 8 images; 3 rounds of 2 images with gradient, 5 steps of 2.
    passes = tmp_path / 'run' / 'teacher_passes.json'
    assert json.loads(passes.read_text()) == dict(start=8, all=8 + 3 * 2 * 2 + 5 * 2)

    # The images of the bank lie beside the run.
    shutil.copytree(tmp_path / 'run' / 'synthetic', tmp_path / 'resumed' / 'synthetic')
    resumed = _run(
        tmp_path,
        work_dir=str(tmp_path / 'resumed'),
        load_from=str(tmp_path / 'run' / 'iter_3.pth'),
        resume=True,
    )
    for key, value in through['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    again = resumed['dfkd_state']['source']
    for key, value in now.items():
        if torch.is_tensor(value):
            assert torch.equal(value, again[key]), key
    assert again['_extra_state']['bank'] == now['_extra_state']['bank']
    assert (tmp_path / 'resumed' / 'teacher_passes.json').read_text() == passes.read_text()
