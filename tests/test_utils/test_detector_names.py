"""A ViTDet of detectron2, whole: its names come to mmdet's, and it computes what it did."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import toy
from mmengine.config import Config
from test_convert import ARCH, DIMS, ROOT, detectron2_weights, run_tool

from mmdfkd.utils.checkpoint import read_checkpoint, unwrap_state_dict
from mmdfkd.utils.convert import ConversionError, convert_vit
from mmdfkd.utils.detector_names import detector_name
from mmdfkd.utils.key_report import CheckpointMismatchError, check_keys

OUT, CLASSES, HIDDEN = 8, 3, 10


def conv(name, channels, out, size, norm=True):
    """A convolution of detectron2: a norm in it, or a bias."""
    shapes = {f'{name}.weight': (out, channels, size, size)}
    if norm:
        return shapes | {f'{name}.norm.weight': (out,), f'{name}.norm.bias': (out,)}
    return shapes | {f'{name}.bias': (out,)}


def layer(name, *shape, bias=0):
    return {f'{name}.weight': shape, f'{name}.bias': (shape[bias],)}


def behind_the_backbone():
    """Shapes by detectron2's names, written from its modules: Mask R-CNN on simfp_2 ... simfp_5."""
    fp = 'backbone.simfp_'
    shapes = layer(f'{fp}2.0', DIMS, DIMS // 2, 2, 2, bias=1) | layer(f'{fp}2.1', DIMS // 2)
    shapes |= layer(f'{fp}2.3', DIMS // 2, DIMS // 4, 2, 2, bias=1)
    shapes |= layer(f'{fp}3.0', DIMS, DIMS // 2, 2, 2, bias=1)
    for stage, first, width in ((2, 4, DIMS // 4), (3, 1, DIMS // 2), (4, 0, DIMS), (5, 1, DIMS)):
        shapes |= conv(f'{fp}{stage}.{first}', width, OUT, 1)
        shapes |= conv(f'{fp}{stage}.{first + 1}', OUT, OUT, 3)
    rpn = 'proposal_generator.rpn_head.'
    for i in range(2):
        shapes |= conv(f'{rpn}conv.conv{i}', OUT, OUT, 3, norm=False)
    shapes |= conv(f'{rpn}objectness_logits', OUT, 3, 1, norm=False)
    shapes |= conv(f'{rpn}anchor_deltas', OUT, 12, 1, norm=False)
    for i in range(1, 5):
        shapes |= conv(f'roi_heads.box_head.conv{i}', OUT, OUT, 3)
        shapes |= conv(f'roi_heads.mask_head.mask_fcn{i}', OUT, OUT, 3)
    shapes |= layer('roi_heads.box_head.fc1', HIDDEN, OUT * 49)
    shapes |= layer('roi_heads.box_predictor.cls_score', CLASSES + 1, HIDDEN)
    shapes |= layer('roi_heads.box_predictor.bbox_pred', 4 * CLASSES, HIDDEN)
    shapes |= layer('roi_heads.mask_head.deconv', OUT, OUT, 2, 2, bias=1)
    return shapes | conv('roi_heads.mask_head.predictor', OUT, CLASSES, 1, norm=False)


def weights():
    backbone = {k: v for k, v in detectron2_weights()[0].items() if '.net.' in k}
    torch.manual_seed(1)
    others = {k: torch.randn(shape) * 0.4 for k, shape in behind_the_backbone().items()}
    means = dict(
        pixel_mean=torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        pixel_std=torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
    )
    return backbone | others | means


def config():
    """The shipped ViTDet-B's, a few channels wide."""
    cfg = Config.fromfile(ROOT / 'configs/coco/vitdet_mask-rcnn_vit-b-mae_lsj-100e.py')
    model = copy.deepcopy(cfg.model.to_dict())
    norm = dict(type='mmdfkd.LayerNorm2d', eps=1e-6)
    model['backbone'].update(
        arch=dict(ARCH, global_indices=(1,)),
        img_size=32,
        patch_size=8,
        window_size=2,
        pretrain_img_size=32,
    )
    model['neck'].update(in_channels=DIMS, out_channels=OUT, norm_eps=1e-6)
    model['rpn_head'].update(in_channels=OUT, feat_channels=OUT)
    roi = model['roi_head']
    for part in (roi['bbox_roi_extractor'], roi['mask_roi_extractor']):
        part['out_channels'] = OUT
    for part in (roi['bbox_head'], roi['mask_head']):
        part.update(in_channels=OUT, conv_out_channels=OUT, num_classes=CLASSES, norm_cfg=norm)
    roi['bbox_head']['fc_out_channels'] = HIDDEN
    return toy.whole(model)


def norm(w, name, x):
    x = F.layer_norm(x.movedim(1, -1), x.shape[1:2], w[f'{name}.weight'], w[f'{name}.bias'], 1e-6)
    return x.movedim(-1, 1)


def convolve(w, name, x):
    kernel = w[f'{name}.weight']
    x = F.conv2d(x, kernel, w.get(f'{name}.bias'), padding=kernel.shape[-1] // 2)
    return norm(w, f'{name}.norm', x) if f'{name}.norm.weight' in w else x


def deconvolve(w, name, x):
    return F.conv_transpose2d(x, w[f'{name}.weight'], w[f'{name}.bias'], stride=2)


def linear(w, name, x):
    return F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])


def pyramid(w, x):
    """What the paper and detectron2's modules say, by their names."""
    finest = F.gelu(norm(w, 'backbone.simfp_2.1', deconvolve(w, 'backbone.simfp_2.0', x)))
    maps = [deconvolve(w, 'backbone.simfp_2.3', finest), deconvolve(w, 'backbone.simfp_3.0', x)]
    maps += [x, F.max_pool2d(x, 2)]
    outs = []
    for stage, first, level in zip((2, 3, 4, 5), (4, 1, 0, 1), maps, strict=True):
        for i in (first, first + 1):
            level = convolve(w, f'backbone.simfp_{stage}.{i}', level)
        outs.append(level)
    return [*outs, outs[-1][..., ::2, ::2]]


def heads(w, level, region, grid):
    """RPN on a level, box head on 7 x 7 and mask head on 14 x 14 cells."""
    rpn, box, mask = 'proposal_generator.rpn_head.', 'roi_heads.box_', 'roi_heads.mask_head.'
    for i in range(2):
        level = convolve(w, f'{rpn}conv.conv{i}', level).relu()
    for i in range(1, 5):
        region = convolve(w, f'{box}head.conv{i}', region).relu()
        grid = convolve(w, f'{mask}mask_fcn{i}', grid).relu()
    vector = linear(w, f'{box}head.fc1', region.flatten(1)).relu()
    return [
        convolve(w, f'{rpn}objectness_logits', level),
        convolve(w, f'{rpn}anchor_deltas', level),
        linear(w, f'{box}predictor.cls_score', vector),
        linear(w, f'{box}predictor.bbox_pred', vector),
        convolve(w, f'{mask}predictor', deconvolve(w, f'{mask}deconv', grid).relu()),
    ]


def test_the_whole_detector_computes_what_it_did(tmp_path):
    from mmdfkd.distillers.teacher import Teacher

    found = weights()
    with (tmp_path / 'model_final.pkl').open('wb') as file:
        pickle.dump(dict(model={k: v.numpy() for k, v in found.items()}), file)
    result = convert_vit(
        unwrap_state_dict(read_checkpoint(tmp_path / 'model_final.pkl')), to='vitdet-detector'
    )
    assert result.left_out == dict.fromkeys(('pixel_mean', 'pixel_std'), 'not learned')
    assert '[123.675, 116.28, 103.53]' in str(result) and 'norm_eps' in str(result)
    # A teacher reads the file as it is, every key of it.
    teacher = Teacher(config(), str(tmp_path / 'model_final.pkl'))
    teacher.load()
    net = teacher.net.double()
    assert check_keys(net.state_dict(), result.weights, what='it').matched == len(found) - 2

    w = {k: v.double() for k, v in found.items()}
    torch.manual_seed(2)
    feature, region, grid = (
        torch.randn(2, c, s, s).double() for c, s in ((DIMS, 4), (OUT, 7), (OUT, 14))
    )
    with torch.no_grad():
        levels, own = pyramid(w, feature), net.neck((feature,))
        assert len(levels) == len(own) == 5
        for a, b in zip(own, levels, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        scores, deltas = net.rpn_head([levels[1]])
        answers = [scores[0], deltas[0], *net.roi_head.bbox_head(region)]
        answers.append(net.roi_head.mask_head(grid))
        for a, b in zip(answers, heads(w, levels[1], region, grid), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
            assert a.std() > 0.01


@pytest.mark.parametrize(
    ('theirs', 'ours'),
    [
        ('roi_heads.box_head.2.conv4.norm.bias', 'bbox_head.2.shared_convs.3.norm_layer.bias'),
        ('roi_heads.box_head.0.fc1.weight', 'bbox_head.0.shared_fcs.0.weight'),
        ('roi_heads.box_predictor.1.bbox_pred.bias', 'bbox_head.1.fc_reg.bias'),
    ],
)
def test_stages_of_a_cascade(theirs, ours):
    assert detector_name(theirs) == f'roi_head.{ours}'


def test_names_of_mmdet_stay_and_unknown_ones_are_named():
    assert detector_name('proposal_generator.rpn_head.conv.weight') == 'rpn_head.rpn_conv.weight'
    own = toy.build(config()['model']).state_dict()
    result = convert_vit(own, to='vitdet-detector')
    assert result.family == 'ViTDet' and set(result.weights) == set(own) and not result.left_out
    strange = ('backbone.simfp_2.6.weight', 'roi_heads.keypoint_head.conv1.weight')
    with pytest.raises(ConversionError, match='2 keys.*simfp_2.6.weight, roi_heads.keypoint'):
        convert_vit(weights() | dict.fromkeys(strange, torch.zeros(1)), to='vitdet-detector')


def test_the_tool_converts_it(tmp_path, monkeypatch, capsys):
    found = weights()
    torch.save(dict(model=found), tmp_path / 'd2.pth')
    Config(config()).dump(tmp_path / 'vitdet.py')
    options = ('--to', 'vitdet-detector', '--config', tmp_path / 'vitdet.py')
    run_tool(monkeypatch, tmp_path / 'd2.pth', tmp_path / 'out.pth', *options)
    said = capsys.readouterr().out
    assert 'from the names of detectron2 to vitdet-detector' in said
    assert f'{len(found) - 2} tensors match' in said
    del found['roi_heads.box_head.conv2.norm.bias']
    torch.save(dict(model=found), tmp_path / 'd2.pth')
    with pytest.raises(CheckpointMismatchError, match='shared_convs.1.norm_layer.bias'):
        run_tool(monkeypatch, tmp_path / 'd2.pth', tmp_path / 'other.pth', *options)
