"""The authors' DETR under mmdet's names: every key of both, and the same answers."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from tiny_runs import ROOT
from torch import nn

from mmdfkd.distillers import build_network, load_config
from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors, unwrap_state_dict
from mmdfkd.utils.key_report import load_strict

TOOL = ROOT / 'tools' / 'model_converters' / 'detr_checkpoint.py'
# COCO's 80 ids out of 1 to 90, written down from its annotation file.
COCO_IDS = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70] + [
    *range(72, 83),
    *range(84, 91),
]


def tool():
    spec = importlib.util.spec_from_file_location('detr_checkpoint', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention(name, width):
    return {
        f'{name}.in_proj_weight': (3 * width, width),
        f'{name}.in_proj_bias': (3 * width,),
        f'{name}.out_proj.weight': (width, width),
        f'{name}.out_proj.bias': (width,),
    }


def authors_shapes(net, layers=6, width=256, hidden=2048, queries=100) -> dict:
    """Names and shapes of their DETR, written down; the ResNet's are torchvision's."""
    shapes = {
        f'backbone.0.body.{k}': tuple(v.shape)
        for k, v in net.backbone.state_dict().items()
        # Their frozen batch norm counts no batches.
        if not k.endswith('num_batches_tracked')
    }
    last = shapes['backbone.0.body.layer4.0.conv2.weight'][0]
    shapes |= {'input_proj.weight': (width, last, 1, 1), 'input_proj.bias': (width,)}
    shapes |= {'query_embed.weight': (queries, width)}
    shapes |= {'class_embed.weight': (92, width), 'class_embed.bias': (92,)}
    for i, rows in enumerate((width, width, 4)):
        shapes |= {f'bbox_embed.layers.{i}.weight': (rows, width)}
        shapes |= {f'bbox_embed.layers.{i}.bias': (rows,)}
    for part, norms in (('encoder', 2), ('decoder', 3)):
        for i in range(layers):
            layer = f'transformer.{part}.layers.{i}'
            shapes |= attention(f'{layer}.self_attn', width)
            if part == 'decoder':
                shapes |= attention(f'{layer}.multihead_attn', width)
            shapes |= {f'{layer}.linear1.weight': (hidden, width)}
            shapes |= {f'{layer}.linear1.bias': (hidden,)}
            shapes |= {f'{layer}.linear2.weight': (width, hidden)}
            shapes |= {f'{layer}.linear2.bias': (width,)}
            for j in range(1, norms + 1):
                shapes |= {f'{layer}.norm{j}.{k}': (width,) for k in ('weight', 'bias')}
    shapes |= {f'transformer.decoder.norm.{k}': (width,) for k in ('weight', 'bias')}
    return shapes


@pytest.fixture(scope='module')
def theirs():
    net = build_network(load_config('mmdet::detr/detr_r18_8xb2-500e_coco.py'))
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) * 0.05
        for name, shape in authors_shapes(net).items()
    }
    return net, state


def test_the_tool_gives_what_mmdet_loads(theirs, tmp_path):
    net, state = theirs
    source, out = tmp_path / 'theirs.pth', tmp_path / 'made' / 'ours.pth'
    torch.save(dict(model=state), source)
    done = subprocess.run(
        [sys.executable, str(TOOL), str(source), str(out)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = unwrap_state_dict(read_checkpoint(str(out)))
    # Strict: nothing is missing, left over or of another shape.
    load_strict(net, made, what='converted')
    assert len(COCO_IDS) == 80
    assert torch.equal(net.bbox_head.fc_cls.weight[:80], state['class_embed.weight'][COCO_IDS])
    assert torch.equal(net.bbox_head.fc_cls.weight[80], state['class_embed.weight'][91])
    assert f'{len(made)} tensors' in done.stdout


@torch.no_grad()
def test_a_decoder_layer_answers_as_torchs_own_does(theirs):
    """Which norm is which: a decoder layer of torch's, of their names, and mmdet's."""
    net, state = theirs
    load = {k: v for k, v in tool().convert(state).items() if k.startswith('decoder.layers.3.')}
    ours = net.decoder.layers[3].eval()
    ours.load_state_dict({k.removeprefix('decoder.layers.3.'): v for k, v in load.items()})
    layer = nn.TransformerDecoderLayer(256, 8, 2048, batch_first=True).eval()
    own = {
        k.removeprefix('transformer.decoder.layers.3.'): v
        for k, v in state.items()
        if k.startswith('transformer.decoder.layers.3.')
    }
    layer.load_state_dict(own)
    query, memory = torch.randn(2, 5, 256), torch.randn(2, 7, 256)
    zero = torch.zeros_like
    made = ours(
        query,
        key=memory,
        value=memory,
        query_pos=zero(query),
        key_pos=zero(memory),
        key_padding_mask=None,
    )
    torch.testing.assert_close(made, layer(query, memory), atol=1e-4, rtol=1e-4)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match='no class_embed'):
        tool().convert({'backbone.conv1.weight': torch.zeros(1)})
    source = tmp_path / 'other.pth'
    save_tensors({'head.weight': torch.zeros(1)}, source)
    command = [sys.executable, str(TOOL), str(source), str(tmp_path / 'out.pth')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'error: This is no checkpoint' in done.stderr


def test_a_file_that_is_there_is_kept(tmp_path, monkeypatch, capsys):
    source, out = tmp_path / 'theirs.pth', tmp_path / 'ours.pth'
    torch.save(
        {'class_embed.weight': torch.ones(92, 2), 'query_embed.weight': torch.ones(3, 2)}, source
    )
    out.write_bytes(b'precious')
    monkeypatch.setattr(sys, 'argv', ['detr_checkpoint.py', str(source), str(out)])
    with pytest.raises(SystemExit, match=r'ours\.pth exists; give --overwrite'):
        tool().main()
    assert out.read_bytes() == b'precious'
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--overwrite'])
    tool().main()
    assert '2 tensors' in capsys.readouterr().out
    assert len(unwrap_state_dict(read_checkpoint(str(out)))) == 2
