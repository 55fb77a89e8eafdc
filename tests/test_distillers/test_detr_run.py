"""A DETR in a whole run: scenes inverted through it, two steps, a test, the export."""

import torch
import toy

from mmdfkd.adapters import DetrAdapter


def config(tmp_path):
    model = toy.detr_model('two-stage', layers=2, decoder_layers=2, queries=10)
    model['backbone']['arch'].update(head_dims=8)
    net = toy.build(model)
    torch.save(dict(meta={}, state_dict=net.state_dict()), tmp_path / 'detr.pth')
    toy.write_coco(tmp_path / 'data', None)
    cfg = toy.run_config(
        tmp_path,
        model_teacher=dict(config=toy.whole(model), checkpoint=str(tmp_path / 'detr.pth')),
        model_student=dict(
            type='mmdfkd.Shrunk', width=0.75, depth=0.5, decoder=0.5, head=0.5, init='inherit'
        ),
        model_inheritance=dict(images=9, method='select'),
        model_heads=[
            dict(type='mmdfkd.EncoderMemoryHead'),
            dict(type='mmdfkd.RPNResponseHead'),
            dict(type='mmdfkd.QueryAlignedHead'),
            dict(type='mmdfkd.PseudoLabelHead', threshold=0.2, loss_weight=0.1),
        ],
        model_source=dict(
            type='mmdfkd.LayoutInversionSource',
            source=dict(
                type='mmdfkd.PooledSource',
                renderer=dict(type='mmdfkd.ProceduralRenderer'),
                pool_size=6,
                num_workers=0,
            ),
            images=2,
            batch=2,
            steps=2,
            starts=4,
            share=1.0,
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        param_scheduler=None,
    )
    # Scenes of random weights hold nothing that the teacher detects.
    cfg['model']['source']['grow'] = ()
    return cfg


def test_two_steps_and_a_test(tmp_path, monkeypatch):
    from mmdfkd.synthesis import LayoutInversionSource

    monkeypatch.setattr(LayoutInversionSource, 'finish', lambda *_: None)
    seen = []
    observe = DetrAdapter.observe

    def watched(self, images, *args, **settings):
        found = observe(self, images, *args, **settings)
        seen.append((settings.get('fresh'), settings.get('serials'), found))
        return found

    monkeypatch.setattr(DetrAdapter, 'observe', watched)
    runner = toy.runner_of(config(tmp_path))
    distiller = runner.model
    before = {k: v.clone() for k, v in distiller.student.net.state_dict().items()}
    runner.train()
    sizes = distiller.source.sizes
    assert len(sizes) and sizes.min() >= 0 and sizes.max() <= toy.SIZE

    steps = [s for s in seen if s[0] and len(s[1]) == 2]
    assert [s[1] for s in steps[-2:]] == [[0, 1], [2, 3]]
    fresh = [s[2].probe.fresh.references for s in steps[-2:]]
    assert fresh[0].shape == (2, 10, 4) and not torch.equal(*fresh)

    # Every trained parameter moved; what no head reaches did not, and was named.
    assert distiller.frozen == []
    net = distiller.student.net
    still = [n for n, p in net.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    exported = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
    assert set(exported) == set(before)
    assert len(net.decoder.layers) == 1 and len(net.bbox_head.cls_branches) == 2
