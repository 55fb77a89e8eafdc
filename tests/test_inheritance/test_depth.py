import pytest

from mmdfkd.inheritance.depth import choose_layers, uniform_layers
from mmdfkd.inheritance.shrink import spread_globals

W, G = 'window', 'global'


@pytest.mark.parametrize(
    ('teacher', 'layers', 'kept', 'expected'),
    [
        ((2, 5), 6, 6, (2, 5)),
        ((2, 5), 6, 4, (1, 3)),
        ((2, 5), 6, 3, (2,)),
        ((2, 5, 8, 11), 12, 8, (2, 4, 7)),
        ((5, 11, 17, 23), 24, 12, (5, 11)),
        ((), 6, 4, ()),
        ((0, 1, 2, 3), 4, 3, (0, 1, 2)),
    ],
)
def test_spread_globals(teacher, layers, kept, expected):
    assert spread_globals(teacher, layers, kept) == expected


def test_kinds_are_kept_and_the_order_too():
    teacher, student = [W, W, G, W, W, G], [W, G, W, G]
    layers = uniform_layers(teacher, student)
    assert [teacher[i] for i in layers] == student
    assert layers == sorted(set(layers))


@pytest.mark.parametrize('total', [6, 14])
def test_layers_that_matter_stay(total):
    # 14 blocks have too many choices to try each: they are ranked alone.
    matter = {0, 3, total - 1}
    layers = choose_layers([G] * total, [G] * 5, lambda kept: len(matter - set(kept)))
    assert matter <= set(layers) and len(layers) == 5


def test_companions_count_when_all_choices_are_tried():
    # Blocks 1 and 2 do the same: either may go, not both.
    layers = choose_layers(
        [G] * 4, [G] * 2, lambda kept: (not {1, 2} & set(kept)) + (0 not in kept)
    )
    assert layers[0] == 0 and layers[1] in (1, 2)


def test_a_pattern_that_cannot_be_taken_is_named():
    with pytest.raises(ValueError, match='global_indices'):
        uniform_layers([W, W, G], [G, W])
