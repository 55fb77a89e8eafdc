"""A network of timm, its own head included, as teacher and as student."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import toy
from timm_nets import cait, swin, whole_model

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers import build_network, load_config
from mmdfkd.distillers.teacher import Teacher
from mmdfkd.inheritance import inherit
from mmdfkd.synthesis import inspect_teacher
from mmdfkd.synthesis.pass_count import counted
from mmdfkd.utils.key_report import CheckpointMismatchError

CAIT, SWIN = cait(24, whole_model), swin(24, whole_model)
RESNET = whole_model('resnet10t', 32)
del RESNET['img_size']
MODELS = {'cait': CAIT, 'swin': SWIN, 'resnet': RESNET}


def own_timm(model):
    """The network that timm itself builds of a config, other weights than any of ours."""
    ours = ('type', 'data_preprocessor')
    torch.manual_seed(5)
    net = timm.create_model(**{k: v for k, v in model.items() if k not in ours})
    return toy.randomise(net, 5).eval()


def adapter_of(model, seed=0):
    net = toy.build(model, seed, 'mmpretrain')
    return build_adapter(net, Normalizer.from_config(toy.whole(model, 'mmpretrain')))


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_answers_are_mmpretrains_own(name):
    adapter = adapter_of(MODELS[name])
    assert adapter.family == 'classifier' and adapter.num_classes == 5
    pixels = toy.images(3, 32)
    bgr = [(image * 255).round().byte().flip(0) for image in pixels]
    inputs = adapter.net.data_preprocessor(dict(inputs=bgr), False)['inputs']
    with counted(adapter.net, (32, 32)) as count:
        memory = adapter.encode(pixels)
    assert count.forward == 3 and count.dense == 3
    scores = torch.stack([s.pred_score for s in adapter.net.predict(inputs)])
    torch.testing.assert_close(adapter.class_votes(memory), scores, atol=1e-5, rtol=1e-4)
    assert memory.feats[-1].dim() == 2 and len(memory.feats[-1]) == 3
    classifier = adapter.net.model.get_classifier()
    torch.testing.assert_close(classifier(memory.feats[-1]), adapter.answer(memory).logits)


def test_its_loss_and_taps_inside():
    adapter = adapter_of(CAIT)
    pixels = toy.images(2, 32).requires_grad_()
    memory = adapter.encode(pixels, ['model.blocks.0', 'model.blocks_token_only.1'])
    assert memory.taps['model.blocks.0'].shape == (2, 16, 24)
    losses = adapter.target_loss(memory, Targets(labels=torch.tensor([0, 4])))
    (grad,) = torch.autograd.grad(losses[1], pixels)
    assert grad[1].abs().sum() > 0 and grad[0].eq(0).all()
    with pytest.raises(KeyError, match=r"'model.blocks' has 0 to 2"):
        adapter.encode(pixels, ['model.blocks.7'])


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_a_teacher_takes_a_file_of_timm(name, tmp_path):
    """With timm's names, and its answers are those of timm's own network."""
    net = own_timm(MODELS[name])
    torch.save(net.state_dict(), tmp_path / 'timm.pth')
    teacher = Teacher(toy.whole(MODELS[name], 'mmpretrain'), str(tmp_path / 'timm.pth'))
    teacher.load()
    images = toy.images(2, 32)
    seen = teacher.observe(images, (), True)
    expected = net(teacher.adapter.normalizer(images))
    torch.testing.assert_close(seen.response.logits, expected)
    lacking = dict(list(net.state_dict().items())[:-1])
    torch.save(lacking, tmp_path / 'lacking.pth')
    teacher = Teacher(toy.whole(MODELS[name], 'mmpretrain'), str(tmp_path / 'lacking.pth'))
    with pytest.raises(CheckpointMismatchError, match=r'1 missing in the file:\s+\S+ \(1\): \S+'):
        teacher.load()


def test_nothing_is_downloaded_for_a_teacher(tmp_path):
    """Neither by ``pretrained`` nor by ``checkpoint_path``."""
    model = dict(CAIT, pretrained=True, checkpoint_path=str(tmp_path / 'none.pth'))
    assert Teacher(toy.whole(model, 'mmpretrain'), 'x.pth').adapter.num_classes == 5


def test_weights_that_timm_has_loaded_stay(tmp_path):
    """``init='config'``: timm's own initialisation would draw Swin's anew."""
    torch.save(own_timm(SWIN).state_dict(), tmp_path / 'timm.pth')
    model = dict(SWIN, checkpoint_path=str(tmp_path / 'timm.pth'))
    cfg = load_config(toy.whole(model, 'mmpretrain'))
    net = build_network(cfg, keep_init=True)
    net.init_weights()
    for key, value in own_timm(SWIN).state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    drawn = build_network(cfg)
    before = copy.deepcopy(drawn.state_dict())
    drawn.init_weights()
    assert not all(torch.equal(before[k], v) for k, v in drawn.state_dict().items())


def run(folder, name, **changes):
    """Two steps of a run of a CaiT that teaches a Swin, both of timm."""
    torch.save(own_timm(CAIT).state_dict(), folder / 'timm.pth')
    cfg = toy.run_config(folder)
    cfg.update(default_scope='mmpretrain', work_dir=str(folder / name))
    cfg['model'].update(
        teacher=dict(config=toy.whole(CAIT, 'mmpretrain'), checkpoint=str(folder / 'timm.pth')),
        student=dict(config=toy.whole(SWIN, 'mmpretrain'), init='random'),
        heads=[
            dict(type='mmdfkd.LogitHead'),
            dict(
                type='mmdfkd.ManifoldHead',
                taps_student=['model.layers.1.blocks.0'],
                taps_teacher=['model.blocks.2'],
                prefix_tokens=0,
                channels_last=True,
            ),
        ],
        image_size=32,
    )
    cfg['train_dataloader']['dataset'].update(image_size=32, metainfo=None)
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=2)
    cfg['default_hooks']['checkpoint'] = dict(type='CheckpointHook', interval=1, by_epoch=False)
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{split}_{part}')
    return dict(cfg, **changes)


def test_a_run_leaves_a_student_for_timm_and_resumes(tmp_path):
    toy.runner_of(run(tmp_path, 'whole')).train()
    files = ('student.pth', 'iter_2.pth')
    whole, checkpoint = (
        torch.load(tmp_path / 'whole' / name, weights_only=name == 'student.pth')['state_dict']
        for name in files
    )
    own_timm(SWIN).load_state_dict(whole, strict=True)
    assert list(checkpoint) == list(whole)
    toy.plain(SWIN, 'mmpretrain').load_state_dict(whole, strict=True)
    # From the checkpoint of the first step to the same weights.
    first = Path(tmp_path / 'whole' / 'iter_1.pth')
    again = run(tmp_path, 'again', resume=True, load_from=str(first))
    toy.runner_of(again).train()
    resumed = torch.load(tmp_path / 'again' / 'student.pth', weights_only=True)['state_dict']
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_what_is_not_supported_says_what_to_do():
    class HuggingFaceClassifier(torch.nn.Module):
        """Stands for mmpretrain's."""

    normalizer = adapter_of(CAIT).normalizer
    with pytest.raises(TypeError, match='VisionTransformer or DistilledVisionTransformer'):
        build_adapter(HuggingFaceClassifier(), normalizer)
    for changes, found in ((dict(num_classes=0), '0 classes'), (dict(features_only=True), 'num_c')):
        net = toy.plain(dict(RESNET, **changes), 'mmpretrain')
        with pytest.raises(ValueError, match=found):
            build_adapter(net, normalizer)
    with pytest.raises(ValueError, match=r"TimmClassifier has no backbone.*init to 'random'"):
        inherit(adapter_of(CAIT), adapter_of(CAIT, 1), toy.images(8, 32))


def test_what_a_teacher_of_timm_offers():
    report = inspect_teacher(adapter_of(RESNET))
    assert report.network == 'TimmClassifier on ResNet' and report.batch_norms > 0
    assert 'mmdfkd.BatchNormPrior' in {cfg['type'] for cfg in report.priors}
    report = inspect_teacher(adapter_of(CAIT))
    assert report.batch_norms == 0 and report.patch == (8, 8)
