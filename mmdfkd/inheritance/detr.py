"""A DETR with a smaller plain ViT, fewer layers and narrower MLPs, made from its teacher."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Memory
from mmdfkd.losses import foreground, query_box_loss, query_class_loss
from mmdfkd.models.necks import SimpleFPN

from .depth import choose_layers, uniform_layers
from .families import Heir
from .layers import LayerView
from .least_squares import Moments, keep_units
from .pyramid import MAX_ROWS, PyramidMap, check_pyramids, inherit_pyramid, refit_layer
from .recipe import Recipe
from .transformer import Plan, assign, assign_layer, held_out
from .views import ViTDetView

#: Images on which layers are chosen.
_CHOOSE_IMAGES = 64


class DetrHeir(Heir):
    """DETR-like detectors with ViTDet.

    The decoder's width stays, so the neck absorbs the rotation of the backbone's channels, and
    encoder, decoder, heads and queries are copied: those layers without whose companions the
    teacher's answers change least, each with its own branches of the heads. Hidden units of their
    MLPs are chosen as the backbone's are, and the layer after them makes up for the others by least
    squares. Where nothing is cut, all is exact.
    """

    def __init__(self, teacher: Adapter, student: Adapter) -> None:
        super().__init__(teacher, student)
        for net in (teacher.net, student.net):
            if not isinstance(net.backbone, ViTDetView.backbone_type) or not (
                isinstance(net.neck, SimpleFPN) or _is_mapper(net.neck)
            ):
                raise ValueError(
                    'Inheritance supports DETR-like detectors with mmdfkd.ViTDet and '
                    'mmdfkd.SimpleFPN or a ChannelMapper, not '
                    f'{type(net.backbone).__name__} with {type(net.neck).__name__}.'
                )
            if net.backbone.out_indices != (net.backbone.num_layers - 1,):
                raise ValueError(
                    'Inheritance needs a ViTDet that returns its last block alone (out_indices=-1).'
                )
        pairs = [(type(a), type(b)) for a, b in zip(*map(_parts, self._nets), strict=True)]
        for theirs, own in pairs:
            if theirs is not own:
                raise ValueError(
                    f'The teacher has a {theirs.__name__}, the student a {own.__name__}: a student '
                    'inherits from its own kind of DETR only.'
                )
        if teacher.net.embed_dims != student.net.embed_dims:
            raise ValueError(
                f"The student's decoder is {student.net.embed_dims} wide, the teacher's "
                f'{teacher.net.embed_dims}: queries are inherited at equal width only.'
            )

    def check(self) -> None:
        """Of backbone and pyramid."""
        super().check()
        necks = [net.neck for net in self._nets]
        if all(isinstance(neck, SimpleFPN) for neck in necks):
            check_pyramids(*necks)

    @property
    def _nets(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher.net, self.student.net

    @staticmethod
    def _map(tokens: Tensor) -> tuple[Tensor]:
        return (tokens.permute(0, 3, 1, 2).contiguous(),)

    def readout(self, tokens: Tensor) -> list[Tensor]:
        """What the teacher makes of its last tokens: the maps that the encoder reads."""
        return list(self.teacher.net.neck(self._map(tokens)))

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Between two readouts."""
        return _apart(ours, theirs)

    def finish(self, plan: Plan, recipe: Recipe, images: Sequence[Tensor]) -> PyramidMap:
        """Write everything after the student's backbone."""
        maps = self._neck(plan, recipe)
        memories = [self.teacher.encode(batch) for batch in images]
        some = memories[: max(1, _CHOOSE_IMAGES // max(len(images[0]), 1))]
        kept = self._encoder_layers(some, recipe), self._decoder_layers(some, recipe)
        self._copy(*kept)
        self._mlps(kept, images, recipe)
        print_log(f'Inherited encoder layers {kept[0]} and decoder layers {kept[1]}.', 'current')
        return maps

    # Neck -----------------------------------------------------------------------------------------

    def _neck(self, plan: Plan, recipe: Recipe) -> PyramidMap:
        old, new = (net.neck for net in self._nets)
        x, y = (
            [self._map(t)[0] for t in tokens]
            for tokens in (plan.teacher_tokens, plan.student_tokens)
        )
        if isinstance(old, SimpleFPN):
            return inherit_pyramid(old, new, plan.stream, x, y, recipe)
        eye = torch.eye(len(old.convs[0].conv.weight), dtype=torch.float64, device=x[0].device)
        theirs = [old.convs[0], *(old.extra_convs or ())[:1]]
        ours = [new.convs[0], *(new.extra_convs or ())[:1]]
        for a, b in zip(theirs, ours, strict=True):
            LayerView(b.conv).assign(*LayerView(a.conv).derive(plan.stream.read))
            if recipe.refits and b.conv.stride == (1, 1):
                pairs = (
                    (t, a.conv(s), held_out(i)) for i, (s, t) in enumerate(zip(x, y, strict=True))
                )
                refit_layer(b.conv, pairs, max(1, MAX_ROWS // len(x)))
            if a.with_norm:
                b.norm.load_state_dict(a.norm.state_dict())
        for a, b in zip((old.extra_convs or ())[1:], (new.extra_convs or ())[1:], strict=True):
            b.load_state_dict(a.state_dict())
        return PyramidMap(eye, [eye], [], eye)

    # Layers ---------------------------------------------------------------------------------------

    def _encoder_layers(self, memories: Sequence[Memory], recipe: Recipe) -> list[int]:
        old, new = (net.encoder.layers for net in self._nets)
        kinds = ['layer'] * len(old), ['layer'] * len(new)
        if recipe.layers == 'uniform' or len(old) == len(new):
            return uniform_layers(*kinds)

        def change(kept: tuple[int, ...]) -> float:
            with _layers_of(self.teacher.net, 'encoder', kept):
                parts = []
                for memory in memories:
                    again = Memory(memory.feats, memory.image_size)
                    tokens = self.teacher.encoded(again).tokens
                    parts.append(_apart([tokens], [memory.encoder.tokens]))
            return float(torch.stack(parts).mean())

        return choose_layers(*kinds, change)

    def _decoder_layers(self, memories: Sequence[Memory], recipe: Recipe) -> list[int]:
        kinds = tuple(_decoder_kinds(net) for net in self._nets)
        if recipe.layers == 'uniform' or len(kinds[0]) == len(kinds[1]):
            return uniform_layers(*kinds)
        answers = [self.teacher.own_answers(memory) for memory in memories]

        def change(kept: tuple[int, ...]) -> float:
            with _layers_of(self.teacher.net, 'decoder', kept):
                found = [self.teacher.own_answers(memory) for memory in memories]
            parts = []
            for ours, theirs in zip(found, answers, strict=True):
                z, b = ours.logits[-1], ours.boxes[-1]
                wanted, place = theirs.logits[-1], theirs.boxes[-1]
                weight = foreground(wanted, theirs.sigmoid)
                l1, giou = query_box_loss(b, place, weight)
                cls = query_class_loss(z, wanted, 0.1 + 0.9 * weight, theirs.sigmoid)
                parts.append(cls + 5 * l1 + 2 * giou)
            return float(torch.stack(parts).mean())

        return choose_layers(*kinds, change)

    def _copy(self, encoder: Sequence[int], decoder: Sequence[int]) -> None:
        """Everything but backbone, neck and hidden units, under the new numbers of the layers."""
        old, new = self._nets
        state = old.state_dict()
        branches = list(decoder)
        if len(getattr(old.bbox_head, 'cls_branches', ())) > len(old.decoder.layers):
            # The last ones choose the queries among the encoder's tokens.
            branches.append(len(old.decoder.layers))
        numbers = {
            'encoder.layers.': encoder,
            'decoder.layers.': decoder,
            'bbox_head.cls_branches.': branches,
            'bbox_head.reg_branches.': branches,
        }
        for name, value in new.state_dict().items():
            if name.startswith(('backbone.', 'neck.', 'data_preprocessor.')):
                continue
            source = name
            for prefix, kept in numbers.items():
                if name.startswith(prefix):
                    slot, rest = name[len(prefix) :].split('.', 1)
                    source = f'{prefix}{kept[int(slot)]}.{rest}'
            if '.ffn.layers.' in name and state[source].shape != value.shape:
                continue
            if source not in state or state[source].shape != value.shape:
                found = tuple(state[source].shape) if source in state else 'nothing'
                raise ValueError(
                    f"The student's {name} has {tuple(value.shape)}, the teacher's {source} "
                    f'{found}: beside backbone, layers and MLPs a DETR student has the sizes of '
                    'its teacher.'
                )
            assign(value, state[source])

    def _mlps(
        self, kept: tuple[list[int], list[int]], images: Sequence[Tensor], recipe: Recipe
    ) -> None:
        """Hidden units of encoder and decoder: chosen by what the next layer makes of them."""
        pairs = []
        for part, layers in zip(('encoder', 'decoder'), kept, strict=True):
            old, new = (getattr(net, part).layers for net in self._nets)
            pairs += [
                (old[i].ffn.layers, own.ffn.layers) for i, own in zip(layers, new, strict=True)
            ]
        pairs = [(a, b) for a, b in pairs if a[1].weight.shape != b[1].weight.shape]
        if not pairs:
            return
        with ExitStack() as stack:
            found = []
            for theirs, _ in pairs:
                moments = Moments(theirs[1].in_features, theirs[1].weight.device)
                hook = theirs[1].register_forward_pre_hook(_adder(moments))
                stack.callback(hook.remove)
                found.append(moments)
            for batch in images:
                self.teacher.own_answers(self.teacher.encode(batch))
        for (theirs, own), moments in zip(pairs, found, strict=True):
            (first, _, _), second = theirs[0], theirs[1]
            count = own[1].in_features
            if count > second.in_features:
                raise ValueError(
                    f"An MLP of the student's decoder has {count} hidden units, more than the "
                    f"teacher's {second.in_features}."
                )
            weight = second.weight.double()
            units, read, offset = keep_units(recipe.units, moments, weight, count)
            assign_layer(own[0][0], first.weight[units], first.bias[units])
            assign_layer(own[1], weight @ read, second.bias.double() + weight @ offset)

    # Report ---------------------------------------------------------------------------------------

    def agreement(
        self, images: Sequence[Tensor], maps: PyramidMap | None
    ) -> dict[str, float | list[float]]:
        """Compare both networks at the teacher's queries.

        ``query_class`` (share of queries with the teacher's first class, weighted by its
        foreground), ``foreground_gap`` (mean absolute difference of the foreground) and
        ``memory_cosine``.
        """
        same = total = gap = cosine = count = 0.0
        for batch in images:
            theirs = self.teacher.observe(batch)
            memory = self.student.encode(batch)
            ours = self.student.answer(memory, theirs.probe).asked
            wanted = theirs.response.asked
            weight, first = wanted.probabilities.max(-1)
            own, own_first = ours.probabilities.max(-1)
            same += float((weight * (first == own_first)).sum())
            total += float(weight.sum())
            gap += float((weight - own).abs().mean()) * len(batch)
            tokens = memory.encoder.tokens, theirs.memory.encoder.tokens
            cosine += float(torch.cosine_similarity(*tokens, dim=-1).mean()) * len(batch)
            count += len(batch)
        return dict(
            query_class=same / max(total, 1e-12),
            foreground_gap=gap / count,
            memory_cosine=cosine / count,
        )


def _adder(moments: Moments):
    return lambda _module, inputs: moments.add(inputs[0])


def _is_mapper(neck: nn.Module) -> bool:
    """A ChannelMapper of mmdet that reads one map."""
    return type(neck).__name__ == 'ChannelMapper' and len(neck.convs) == 1


def _parts(net: nn.Module) -> tuple[nn.Module, ...]:
    return net, net.neck, net.encoder, net.decoder, net.bbox_head


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared error, a share of the variance."""
    pairs = zip(ours, theirs, strict=True)
    return torch.stack(
        [(a - b).square().mean() / b.var().clamp_min(1e-12) for a, b in pairs]
    ).mean()


def _decoder_kinds(net: nn.Module) -> list[str]:
    """Only the first layer of Conditional DETR and DAB-DETR reads the queries' positions."""
    return [
        'first' if getattr(layer.cross_attn, 'qpos_proj', None) is not None else 'layer'
        for layer in net.decoder.layers
    ]


@contextmanager
def _layers_of(net: nn.Module, part: str, kept: Sequence[int]) -> Iterator[None]:
    """Let encoder or decoder run some of its layers alone, each with its branches of the heads."""
    module, head = getattr(net, part), net.bbox_head
    before = [(module, 'layers', module.layers), (module, 'num_layers', module.num_layers)]
    module.layers = nn.ModuleList(module.layers[i] for i in kept)
    module.num_layers = len(kept)
    if part == 'decoder' and hasattr(head, 'cls_branches'):
        last = range(len(before[0][2]), len(head.cls_branches))
        for name in ('cls_branches', 'reg_branches'):
            branches = getattr(head, name)
            before.append((head, name, branches))
            setattr(head, name, nn.ModuleList(branches[i] for i in (*kept, *last)))
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
