"""A setting that a class does not take stops the run and is answered with those it does."""

import inspect

import pytest
import toy
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdfkd.registry import HOOKS, MODELS, RoomRegistry
from mmdfkd.utils.arguments import accepted_arguments


@pytest.fixture
def registry():
    """A registry of its own."""
    return RoomRegistry('made for a test', None, ())


def test_unknown_setting_names_class_key_and_nearest(registry):
    built = []

    @registry.register_module()
    class Kettle:
        def __init__(self, volume, colour='red'):
            built.append(volume)

    with pytest.raises(TypeError, match=r"Kettle does not know 'colur' \(did you mean 'colour'\?"):
        registry.build(dict(type='Kettle', volume=1, colur='blue'))
    assert built == []
    registry.build(dict(type='Kettle', volume=1, colour='blue'))
    Kettle(2, 'blue')
    assert built == [1, 2]


def test_signature_name_and_isinstance_are_kept(registry):
    @registry.register_module()
    class Kettle:
        """Boils."""

        def __init__(self, volume: int, *, colour: str = 'red') -> None:
            """Make."""
            self.volume = volume

    assert list(inspect.signature(Kettle).parameters) == ['volume', 'colour']
    assert Kettle.__name__ == 'Kettle' and Kettle.__init__.__doc__ == 'Make.'
    assert isinstance(Kettle(1), Kettle)


def test_forwarded_keywords_are_those_of_the_base(registry):
    class Base(BaseModule):
        def __init__(self, weight=1.0, init_cfg=None):
            super().__init__(init_cfg)
            self.weight = weight

    @registry.register_module()
    class Head(Base):
        def __init__(self, floor=0.1, **kwargs):
            super().__init__(**kwargs)
            self.floor = floor

    head = registry.build(dict(type='Head', floor=0.5, weight=2.0))
    assert (head.floor, head.weight) == (0.5, 2.0)
    with pytest.raises(TypeError, match="'wieght'.*did you mean 'weight'"):
        registry.build(dict(type='Head', wieght=2.0))
    assert accepted_arguments(Head) == ['floor', 'weight', 'init_cfg']


def test_subclasses_registered_or_not(registry):
    @registry.register_module()
    class Base:
        def __init__(self, a=1):
            self.a = a

    @registry.register_module()
    class Child(Base):
        def __init__(self, b=2, **kwargs):
            super().__init__(**kwargs)
            self.b = b

    @registry.register_module()
    class Heir(Base):
        """Has no initialiser of its own."""

    class Free(Base):
        def __init__(self, c):
            super().__init__(a=c)

    assert vars(registry.build(dict(type='Child', a=5))) == dict(a=5, b=2)
    assert registry.build(dict(type='Heir', a=7)).a == 7
    assert Free(c=3).a == 3
    with pytest.raises(TypeError, match="Heir does not know 'c'. It takes: a"):
        registry.build(dict(type='Heir', c=1))
    assert registry.build(dict(type='Base', a=4)).a == 4


def test_a_class_that_keeps_its_keywords_takes_all(registry):
    @registry.register_module()
    class Bag:
        def __init__(self, **kwargs):
            self.content = kwargs

    assert registry.build(dict(type='Bag', anything=1)).content == dict(anything=1)


def test_functions_can_be_registered(registry):
    @registry.register_module()
    def double(x):
        return 2 * x

    assert registry.build(dict(type='double', x=2)) == 4


@pytest.mark.parametrize(
    ('cfg', 'near'),
    [
        (dict(type='mmdfkd.RPNResponseHead', temprature=2.0), 'temperature'),
        (dict(type='mmdfkd.PyramidHead', loss_wieght=2.0), 'loss_weight'),
        (dict(type='mmdfkd.PooledSource', renderer={}, pool_size=1, ballance=False), 'balance'),
    ],
)
def test_our_heads_and_sources(cfg, near):
    """Also from another scope's registry, as a model config builds them."""
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(TypeError, match=f"did you mean '{near}'"),
    ):
        ROOT.build(cfg)


def test_our_hooks():
    with pytest.raises(TypeError, match='DistillHook'):
        HOOKS.build(dict(type='mmdfkd.DistillHook', interval=1))


def _unknown(tmp_path, part, key):
    cfg = toy.run_config(tmp_path)
    target = cfg['model'] if part == 'model' else cfg['model'][part]
    target[key] = 1
    return cfg


@pytest.mark.parametrize(
    ('part', 'key', 'near'),
    [
        ('model', 'haeds', 'heads'),
        ('teacher', 'checkpint', 'checkpoint'),
        ('student', 'widht', 'width'),
        ('inheritance', 'metod', 'method'),
    ],
)
def test_the_distillers_own_dicts(tmp_path, part, key, near):
    cfg = _unknown(tmp_path, part, key)
    with pytest.raises(TypeError, match=f"'{key}'.*did you mean '{near}'"):
        MODELS.build(Config(cfg).model)


def test_student_from_a_config_takes_no_shares(tmp_path):
    cfg = toy.run_config(tmp_path)
    cfg['model']['student'] = dict(config=toy.whole(toy.resnet_model()), width=0.5)
    with pytest.raises(TypeError, match="does not know 'width'"):
        MODELS.build(Config(cfg).model)


def test_nothing_is_written_before_the_refusal(tmp_path):
    cfg = _unknown(tmp_path, 'student', 'widht')
    with pytest.raises(TypeError, match='widht'):
        Runner.from_cfg(Config(dict(cfg, experiment_name='refused')))
    assert not list(tmp_path.glob('run/*.pth'))
