"""Converted checkpoints compute what they did where they come from."""

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from mmengine.config import Config
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from mmdfkd.models import ViTDet
from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors, unwrap_state_dict
from mmdfkd.utils.convert import ConversionError, convert_vit, fit_names
from mmdfkd.utils.key_report import CheckpointMismatchError, check_keys

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'convert_checkpoint.py'
PEERS = Path(sys.prefix) / 'peers'
DIMS, DEPTH, CLASSES = 12, 2, 5
SIZES = dict(img_size=32, patch_size=8, embed_dim=DIMS, depth=DEPTH, num_heads=2, mlp_ratio=2)
ARCH = dict(embed_dims=DIMS, num_layers=DEPTH, num_heads=2, feedforward_channels=2 * DIMS)


def model(eps=1e-6, distilled=False, **backbone):
    """An mmpretrain classifier."""
    kind = 'DistilledVisionTransformer' if distilled else 'VisionTransformer'
    backbone = dict(type=kind, arch=ARCH, img_size=32, patch_size=8, **backbone)
    head = 'DeiTClsHead' if distilled else 'VisionTransformerClsHead'
    return dict(
        type='ImageClassifier',
        backbone=dict(backbone, norm_cfg=dict(type='LN', eps=eps)),
        head=dict(type=head, num_classes=CLASSES, in_channels=DIMS),
    )


def answer(net, weights, images):
    """Logits of a network that has to take all of the weights, in float64."""
    check_keys(net.state_dict(), weights, what='the test')
    net.double().eval().load_state_dict(weights)
    with torch.no_grad():
        return net.head(net.extract_feat(images))


def random_weights(net, seed=0):
    """No weight at its initial value, which often is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return net.double().eval()


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.manual_seed(1))


TIMM = {
    'plain': (VisionTransformer, {}, {}),
    'class token without position': (VisionTransformer, dict(no_embed_class=True), {}),
    'layer scale': (VisionTransformer, dict(init_values=0.1), dict(layer_scale_init_value=0.1)),
    'no bias of qkv': (VisionTransformer, dict(qkv_bias=False), dict(qkv_bias=False)),
    'mean of patches': (
        VisionTransformer,
        dict(global_pool='avg'),
        dict(out_type='avg_featmap', final_norm=False),
    ),
    'norm before': (VisionTransformer, dict(pre_norm=True), dict(pre_norm=True)),
    'distilled': (VisionTransformerDistilled, {}, dict(distilled=True)),
}


@pytest.mark.parametrize('case', TIMM)
def test_timm(case, images):
    build, theirs, ours = TIMM[case]
    peer = random_weights(build(**SIZES, num_classes=CLASSES, **theirs))
    result = convert_vit(peer.state_dict())
    assert result.family == 'timm' and not result.left_out
    own = answer(toy.plain(model(**ours), 'mmpretrain'), result.weights, images)
    with torch.no_grad():
        torch.testing.assert_close(own, peer(images), rtol=0, atol=1e-11)
    assert own.std() > 0.1


def test_what_mmpretrain_cannot_compute_is_named():
    peer = VisionTransformer(**SIZES, num_classes=CLASSES, qk_norm=True, reg_tokens=2)
    with pytest.raises(ConversionError) as caught:
        convert_vit(peer.state_dict())
    assert 'reg_token' in str(caught.value) and 'blocks.1.attn.k_norm.bias' in str(caught.value)
    asked = convert_vit(peer.state_dict(), drop=['reg_token', '*_norm.*'])
    assert asked.left_out['reg_token'] == 'as asked'
    with pytest.raises(ConversionError, match='No plain ViT'):
        convert_vit({'layer1.0.conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match="not 'keras'"):
        convert_vit(peer.state_dict(), to='keras')


def test_deit_3_of_facebook():
    weights = VisionTransformer(**SIZES, num_classes=CLASSES, init_values=0.1).state_dict()
    facebook = {
        k.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): v
        for k, v in weights.items()
    }
    assert set(facebook) != set(weights)
    converted = convert_vit(facebook).weights
    expected = convert_vit(weights).weights
    assert set(converted) == set(expected)
    assert all(torch.equal(v, expected[k]) for k, v in converted.items())


def mae_weights():
    """Names of facebook's MAE before fine-tuning: an encoder alone, and a decoder."""
    peer = random_weights(VisionTransformer(**SIZES, num_classes=0))
    decoder = dict.fromkeys(['mask_token', 'decoder_pos_embed', 'decoder_embed.weight'])
    decoder |= dict.fromkeys(['decoder_blocks.0.attn.qkv.weight', 'decoder_norm.bias'])
    decoder |= dict.fromkeys(['decoder_pred.weight'])
    return peer, dict.fromkeys(decoder, torch.zeros(1))


def test_mae(images):
    peer, decoder = mae_weights()
    result = convert_vit({**decoder, **peer.state_dict()})
    assert set(result.left_out) == set(decoder)
    assert set(result.left_out.values()) == {'for pre-training only'}
    net = toy.plain(model(), 'mmpretrain').double().eval()
    own = {k: v for k, v in net.state_dict().items() if k.startswith('backbone.')}
    assert check_keys(own, result.weights, what='MAE').matched == len(own)
    net.load_state_dict(result.weights, strict=False)
    with torch.no_grad():
        token = net.extract_feat(images)[-1]
        torch.testing.assert_close(token, peer.forward_features(images)[:, 0], rtol=0, atol=1e-11)


# --- Hugging Face -------------------------------------------------------------------------------

_PEER = """
import sys
import mmdfkd
import torch
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher
from transformers import ViTConfig, ViTForImageClassification
from transformers import ViTMAEConfig, ViTMAEForPreTraining

folder = sys.argv[1]
images = torch.load(f'{folder}/images.pth', weights_only=True)
sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             image_size=32, patch_size=8, num_labels=5, attn_implementation='sdpa')
pairs = dict(vit=(ViTConfig, ViTForImageClassification),
             deit=(DeiTConfig, DeiTForImageClassificationWithTeacher))
for name, (config, build) in pairs.items():
    torch.manual_seed(0)
    net = build(config(**sizes)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.5)
        logits = net(images).logits
    net.save_pretrained(f'{folder}/{name}')
    torch.save(dict(logits=logits, modules=net.state_dict()), f'{folder}/{name}.pth')

# Nothing masked: patches are shuffled, which the class token does not see.
del sizes['num_labels']
decoder = dict(decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
               decoder_intermediate_size=16)
net = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, mask_ratio=0.0)).double().eval()
with torch.no_grad():
    for parameter in net.parameters():
        parameter.normal_(std=0.5)
    token = net.vit(images).last_hidden_state[:, 0]
net.save_pretrained(f'{folder}/vit_mae')
torch.save(dict(token=token, modules=net.state_dict()), f'{folder}/vit_mae.pth')
"""


@pytest.fixture(scope='module')
def hugging_face(tmp_path_factory, images):
    """Networks of ``transformers``, made in a process of their own.

    mmpretrain does not import where a recent one can be imported.
    """
    if not (PEERS / 'transformers').is_dir():
        pytest.skip('tools/setup_env.py puts transformers aside; this environment was made without')
    folder = tmp_path_factory.mktemp('hugging_face')
    torch.save(images, folder / 'images.pth')
    done = subprocess.run(
        [sys.executable, '-c', _PEER, str(folder)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(PEERS)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize('name', ['vit', 'deit'])
def test_hugging_face(hugging_face, name, images):
    peer = torch.load(hugging_face / f'{name}.pth', weights_only=True)
    published = read_checkpoint(hugging_face / name / 'model.safetensors')
    assert f'{name}.encoder.layer.1.attention.attention.query.bias' in published
    assert f'{name}.layers.1.attention.q_proj.bias' in peer['modules']
    for weights in (published, peer['modules']):
        result = convert_vit(unwrap_state_dict(weights))
        assert result.family == 'Hugging Face' and not result.left_out
        net = toy.plain(model(eps=1e-12, distilled=name == 'deit'), 'mmpretrain')
        own = answer(net, result.weights, images)
        torch.testing.assert_close(own, peer['logits'], rtol=0, atol=1e-11)
        assert own.std() > 0.1


def test_hugging_faces_mae(hugging_face, images):
    peer = torch.load(hugging_face / 'vit_mae.pth', weights_only=True)
    published = read_checkpoint(hugging_face / 'vit_mae' / 'model.safetensors')
    for weights in (published, peer['modules']):
        weights = unwrap_state_dict(weights)
        assert any(k.startswith('vit.') for k in weights)
        result = convert_vit(weights)
        assert result.family == 'Hugging Face'
        assert set(result.left_out) == {k for k in weights if k.startswith('decoder.')} != set()
        assert set(result.left_out.values()) == {'for pre-training only'}
        net = toy.plain(model(eps=1e-12), 'mmpretrain').double().eval()
        own = {k: v for k, v in net.state_dict().items() if k.startswith('backbone.')}
        assert check_keys(own, result.weights, what='MAE').matched == len(own)
        net.load_state_dict(result.weights, strict=False)
        with torch.no_grad():
            token = net.extract_feat(images)[-1]
        torch.testing.assert_close(token, peer['token'], rtol=0, atol=1e-11)


# --- ViTDet --------------------------------------------------------------------------------------


def detectron2_weights():
    """A ViTDet in detectron2's names, written from its modules; the values are random."""
    torch.manual_seed(0)
    shapes = {'pos_embed': (1, 17, DIMS), 'patch_embed.proj.weight': (DIMS, 3, 8, 8)}
    shapes['patch_embed.proj.bias'] = (DIMS,)
    for i in range(DEPTH):
        block = f'blocks.{i}'
        linear = {'attn.qkv': (3 * DIMS, DIMS), 'attn.proj': (DIMS, DIMS)}
        linear |= {'mlp.fc1': (2 * DIMS, DIMS), 'mlp.fc2': (DIMS, 2 * DIMS)}
        for name, shape in linear.items():
            shapes |= {f'{block}.{name}.weight': shape, f'{block}.{name}.bias': shape[:1]}
        for name in ('norm1', 'norm2'):
            shapes |= {f'{block}.{name}.weight': (DIMS,), f'{block}.{name}.bias': (DIMS,)}
        side = 2 if i == 0 else 4
        for axis in 'hw':
            shapes[f'{block}.attn.rel_pos_{axis}'] = (2 * side - 1, DIMS // 2)
    weights = {f'backbone.net.{k}': torch.randn(s) * 0.5 for k, s in shapes.items()}
    others = ['backbone.simfp_2.0.weight', 'backbone.simfp_2.4.norm.weight', 'pixel_mean']
    others += ['proposal_generator.rpn_head.conv.conv0.weight']
    others += ['roi_heads.box_predictor.cls_score.weight']
    return weights | dict.fromkeys(others, torch.zeros(1)), others


def vitdet():
    arch = dict(ARCH, global_indices=(1,))
    options = dict(img_size=32, patch_size=8, window_size=2, pretrain_img_size=32)
    return ViTDet(arch, **options)


def vitdet_by_hand(weights, x):
    """The published network, written out from its description: windows of 2, then global."""
    w = {k.removeprefix('backbone.net.'): v.double() for k, v in weights.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * w[f'{name}.weight'] + w[f'{name}.bias']

    def linear(x, name):
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def attend(x, name):
        side = x.shape[0]
        q, k, v = linear(x, f'{name}.qkv').reshape(side * side, 3, 2, -1).unbind(1)
        out = torch.zeros_like(q)
        for head in range(2):
            for i in range(side * side):
                scores = torch.zeros(side * side, dtype=x.dtype)
                for j in range(side * side):
                    scores[j] = q[i, head] @ k[j, head] / q.shape[-1] ** 0.5
                    for axis, a, b in (('h', i // side, j // side), ('w', i % side, j % side)):
                        table = w[f'{name}.rel_pos_{axis}']
                        scores[j] += q[i, head] @ table[a - b + side - 1]
                out[i, head] = scores.softmax(0) @ v[:, head]
        return linear(out.reshape(side, side, -1), f'{name}.proj')

    patches = x.reshape(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4).reshape(4, 4, -1)
    x = patches @ w['patch_embed.proj.weight'].reshape(DIMS, -1).T + w['patch_embed.proj.bias']
    x = x + w['pos_embed'][0, 1:].reshape(4, 4, -1)
    for i in range(DEPTH):
        y, size = norm(x, f'blocks.{i}.norm1'), (2, 4)[i]
        for top in range(0, 4, size):
            for left in range(0, 4, size):
                window = (slice(top, top + size), slice(left, left + size))
                y[window] = attend(y[window].clone(), f'blocks.{i}.attn')
        x = x + y
        hidden = linear(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp.fc1')
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f'blocks.{i}.mlp.fc2')
    return x.permute(2, 0, 1)


def test_detectron2(tmp_path, images):
    weights, others = detectron2_weights()
    with (tmp_path / 'model_final.pkl').open('wb') as file:
        arrays = {k: v.numpy() for k, v in weights.items()}
        pickle.dump(dict(model=arrays, __author__='ViTDet'), file)
    content = unwrap_state_dict(read_checkpoint(tmp_path / 'model_final.pkl'))
    result = convert_vit(content, to='vitdet')
    assert result.family == 'detectron2'
    assert set(result.left_out) == {k.removeprefix('backbone.') for k in others}
    net = vitdet()
    own = {f'backbone.{k}': v for k, v in net.state_dict().items()}
    assert check_keys(own, result.weights, what='ViTDet').matched == len(own)
    save_tensors(result.weights, tmp_path / 'converted.pth')
    # Converted, or as it is: the backbone reads both by itself.
    for name in ('converted.pth', 'model_final.pkl'):
        net = vitdet()
        net.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / name))
        net.init_weights()
        with torch.no_grad():
            feature = net.double().eval()(images[:1])[-1][0]
        expected = vitdet_by_hand({k: weights[k] for k in weights if 'net.' in k}, images[0])
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-11)


def test_a_classifier_becomes_a_vitdet_backbone():
    peer = random_weights(VisionTransformer(**SIZES, num_classes=CLASSES))
    direct = convert_vit(peer.state_dict(), to='vitdet')
    through = convert_vit(convert_vit(peer.state_dict()).weights, to='vitdet')
    assert (direct.family, through.family) == ('timm', 'mmpretrain')
    assert set(direct.left_out) == {'cls_token', 'norm.weight', 'norm.bias', 'head.weight'} | {
        'head.bias'
    }
    assert set(direct.weights) == set(through.weights)
    assert all(torch.equal(v, through.weights[k]) for k, v in direct.weights.items())


# --- where it is used ----------------------------------------------------------------------------


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL))['main']()


def test_the_tool_names_what_does_not_fit(tmp_path, monkeypatch, capsys):
    peer = random_weights(VisionTransformer(**SIZES, num_classes=CLASSES)).float()
    torch.save(dict(model=peer.state_dict(), epoch=3), tmp_path / 'timm.pth')
    whole = toy.whole(model(), 'mmpretrain')
    Config(whole).dump(tmp_path / 'vit.py')
    out = tmp_path / 'converted.pth'
    run_tool(monkeypatch, tmp_path / 'timm.pth', out, '--config', tmp_path / 'vit.py')
    said = capsys.readouterr().out
    assert 'from the names of timm to mmpretrain' in said and 'tensors match' in said
    found = torch.load(out, weights_only=True)
    assert found['meta'] == dict(converted_from='timm')
    assert torch.equal(found['state_dict']['head.layers.head.bias'], peer.head.bias)
    with pytest.raises(ValueError, match='give --overwrite'):
        run_tool(monkeypatch, tmp_path / 'timm.pth', out)
    whole['model']['head']['num_classes'] = 7
    whole['model']['backbone']['pre_norm'] = True
    del whole['model']['backbone']['norm_cfg']
    Config(whole).dump(tmp_path / 'other.py')
    with pytest.raises(CheckpointMismatchError) as caught:
        run_tool(
            monkeypatch,
            tmp_path / 'timm.pth',
            tmp_path / 'n.pth',
            '--config',
            tmp_path / 'other.py',
        )
    message = str(caught.value)
    assert (
        'backbone.pre_norm.weight' in message and 'backbone.patch_embed.projection.bias' in message
    )
    assert 'head.layers.head.weight [5, 12] in the file, [7, 12] in the network' in message
    assert not (tmp_path / 'n.pth').exists()


def test_a_teacher_takes_timms_names(tmp_path, images):
    from mmdfkd.distillers.teacher import Teacher

    peer = random_weights(VisionTransformer(**SIZES, num_classes=CLASSES)).float()
    torch.save(peer.state_dict(), tmp_path / 'timm.pth')
    pre = dict(mean=[0.0] * 3, std=[255.0] * 3, to_rgb=False)
    config = dict(toy.whole(model(), 'mmpretrain'), data_preprocessor=pre)
    teacher = Teacher(config, str(tmp_path / 'timm.pth'), input_order='rgb')
    teacher.load()
    pixels = images.float().sigmoid()
    with torch.no_grad():
        own = teacher.observe(pixels, (), True).response.logits
        torch.testing.assert_close(own, peer(pixels), rtol=0, atol=1e-4)


def test_names_are_left_where_nothing_is_foreign():
    net = toy.plain(model(), 'mmpretrain').state_dict()
    assert fit_names(net, net, 'x') is net
    foreign = VisionTransformer(**SIZES, num_classes=CLASSES).state_dict()
    own = {k.replace('head.layers.head', 'head.fc'): v for k, v in net.items()}
    assert set(fit_names(foreign, own, 'x')) == set(own)
