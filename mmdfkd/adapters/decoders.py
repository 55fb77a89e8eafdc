"""How the decoder of each kind of DETR is given its queries, mmdet's own or foreign ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor, nn

from .observation import EncoderMemory
from .queries import Queries, QueryAnswers


@contextmanager
def _as_in_eval(net: nn.Module) -> Iterator[None]:
    """The flag of the detector itself, not of its layers: dropout stays as it was.

    In train mode DINO prepares denoising queries, which need ground truth.
    """
    was = net.training
    net.training = False
    try:
        yield
    finally:
        net.training = was


class Decoder:
    """The decoder of DETR and Conditional DETR: a learned position a query, its content is zero.

    Args:
        net (nn.Module): mmdet's detector.
    """

    #: Whether a query is the same one in every image. Where queries are chosen from the image, its
    #: index is only its rank.
    steady = True

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @property
    def kind(self) -> str:
        """Name of the decoder's kind."""
        return type(self.net.decoder).__name__

    def own(self, encoder: EncoderMemory) -> dict[str, Any]:
        """The network's own queries as arguments of ``forward_decoder``, differentiable.

        Raises:
            ValueError: If queries are chosen among fewer tokens than there are queries.
        """
        tokens = encoder.tokens.shape[1]
        if not self.steady and tokens < self.net.num_queries:
            raise ValueError(
                f'{type(self.net).__name__} chooses {self.net.num_queries} queries among the '
                f"encoder's tokens, but these images give {tokens}: larger images are needed, of "
                'the dataset (image_size) or, when a run is built, of model.image_size.'
            )
        with _as_in_eval(self.net):
            inputs, _ = self.net.pre_decoder(**encoder.before_decoder)
        return inputs

    def run(self, inputs: dict[str, Any], encoder: EncoderMemory) -> QueryAnswers:
        """Decoder and heads at what :meth:`own` or :meth:`ask` gave."""
        hidden = self.net.forward_decoder(**{**encoder.decoder, **inputs})
        head = self.net.bbox_head
        logits, boxes = head(**hidden)
        return QueryAnswers(logits, boxes, bool(head.loss_cls.use_sigmoid))

    def read(self, inputs: dict[str, Any]) -> Queries:
        """The queries of :meth:`own`, detached, for another network."""
        return Queries(self.kind, position=inputs['query_pos'].detach())

    def ask(self, queries: Queries, encoder: EncoderMemory) -> dict[str, Any] | None:
        """Foreign queries as arguments of ``forward_decoder``.

        Returns:
            dict, optional: None if this decoder cannot be asked them.
        """
        if not self._fits(queries, queries.position):
            return None
        position = queries.position.to(self._like(encoder))
        return dict(query=torch.zeros_like(position), query_pos=position, memory=encoder.tokens)

    def fresh(self, own: Queries, rngs: Sequence[np.random.Generator]) -> Queries:
        """As many random queries of the same kind.

        Learned ones are turned between two of its own about their mean, ``m + cos(a) (q_i - m) +
        sin(a) (q_j - m)``, which keeps mean and covariance. References: centres uniform in the
        image, sizes of its own.

        Args:
            own (Queries): The network's own, detached.
            rngs (Sequence[np.random.Generator]): One for each image.
        """
        (position,) = _turned(rngs, own.position)
        return Queries(own.kind, position=position)

    def proposals(self, encoder: EncoderMemory) -> tuple[Tensor, Tensor] | None:
        """Of a network that chooses its queries among the encoder's tokens: how it scores them.

        Returns:
            tuple[Tensor, Tensor], optional: Logits by which it chooses, ``[B, N]``, and regressed
            boxes before the proposals are added, in units of the inverse sigmoid, ``[B, N, 4]``.
        """
        return None

    def _like(self, encoder: EncoderMemory) -> Tensor:
        """Of the device of the tokens and the type of the parameters."""
        return encoder.tokens.new_empty(0, dtype=next(self.net.decoder.parameters()).dtype)

    def _fits(self, queries: Queries, *parts: Tensor | None) -> bool:
        return queries.kind == self.kind and all(
            part is not None and part.shape[-1] == self.net.embed_dims for part in parts
        )


class AnchorDecoder(Decoder):
    """DAB-DETR's: an anchor box a query, which means the same at any width."""

    def read(self, inputs: dict[str, Any]) -> Queries:
        """Content only where there are patterns; otherwise it is zero."""
        anchors = inputs['query_pos'].detach()
        content = inputs['query'].detach() if self.net.num_patterns else None
        return Queries(self.kind, content, anchors, anchors.sigmoid())

    def ask(self, queries: Queries, encoder: EncoderMemory) -> dict[str, Any] | None:
        """At the anchors, or at the references of another kind."""
        like, width, dims = self._like(encoder), self.net.embed_dims, self.net.query_dim
        anchors = queries.position if queries.kind == self.kind else None
        if anchors is None and queries.references is not None:
            anchors = inverse_sigmoid(queries.references)
        if anchors is None or anchors.shape[-1] != dims:
            return None
        content = queries.content if queries.kind == self.kind else None
        if content is None:
            content = anchors.new_zeros(*anchors.shape[:-1], width)
        if content.shape[-1] != width:
            return None
        return dict(query=content.to(like), query_pos=anchors.to(like), memory=encoder.tokens)

    def fresh(self, own: Queries, rngs: Sequence[np.random.Generator]) -> Queries:
        """Anchors anywhere, of its own sizes."""
        references = _scattered(rngs, own.references)
        content = own.content
        if content is not None:
            (content,) = _shuffled(rngs, content)
        return Queries(own.kind, content, inverse_sigmoid(references), references)


class DeformableDecoder(Decoder):
    """Deformable DETR's with learned queries: content, position, and the point they imply."""

    def read(self, inputs: dict[str, Any]) -> Queries:
        """All three."""
        return Queries(
            self.kind,
            *(inputs[name].detach() for name in ('query', 'query_pos', 'reference_points')),
        )

    def ask(self, queries: Queries, encoder: EncoderMemory) -> dict[str, Any] | None:
        """All three; a point alone would meet a content that belongs elsewhere."""
        if not self._fits(queries, queries.content, queries.position):
            return None
        if queries.references is None:
            return None
        like = self._like(encoder)
        return dict(
            query=queries.content.to(like),
            query_pos=queries.position.to(like),
            reference_points=queries.references.to(like),
            memory=encoder.tokens,
        )

    def fresh(self, own: Queries, rngs: Sequence[np.random.Generator]) -> Queries:
        """Content and position turned together; the point follows from the position."""
        content, position = _turned(rngs, own.content, own.position)
        points = self.net.reference_points_fc(position).sigmoid().detach()
        return Queries(own.kind, content, position, points)


class TwoStageDecoder(Decoder):
    """Deformable DETR's with two stages: queries are a function of the boxes that they start from.

    Each network makes its own queries from the boxes, so that what makes them is trained.
    """

    steady = False

    def read(self, inputs: dict[str, Any]) -> Queries:
        """The boxes."""
        return Queries(self.kind, references=inputs['reference_points'].detach())

    def ask(self, queries: Queries, encoder: EncoderMemory) -> dict[str, Any] | None:
        """At boxes of any kind."""
        net = self.net
        if queries.references is None or queries.references.shape[-1] != 4:
            return None
        references = queries.references.to(self._like(encoder))
        made = net.pos_trans_fc(net.get_proposal_pos_embed(references.logit()))
        position, content = net.pos_trans_norm(made).split(net.embed_dims, dim=2)
        return dict(
            query=content, query_pos=position, reference_points=references, memory=encoder.tokens
        )

    def fresh(self, own: Queries, rngs: Sequence[np.random.Generator]) -> Queries:
        """Boxes anywhere, of its own sizes."""
        return Queries(own.kind, references=_scattered(rngs, own.references))

    def proposals(self, encoder: EncoderMemory) -> tuple[Tensor, Tensor]:
        """Chosen by the first class's logit, which stands for any object."""
        logits, deltas = self._scored(encoder)
        return logits[..., 0], deltas

    def _scored(self, encoder: EncoderMemory) -> tuple[Tensor, Tensor]:
        net, given = self.net, encoder.before_decoder
        tokens, _ = net.gen_encoder_output_proposals(
            encoder.tokens, given['memory_mask'], given['spatial_shapes']
        )
        last = net.decoder.num_layers
        head = net.bbox_head
        return head.cls_branches[last](tokens), head.reg_branches[last](tokens)


class DinoDecoder(TwoStageDecoder):
    """DINO's: the boxes chosen from the image, the content learned."""

    def read(self, inputs: dict[str, Any]) -> Queries:
        """Content and boxes."""
        return Queries(
            self.kind,
            content=inputs['query'].detach(),
            references=inputs['reference_points'].detach(),
        )

    def ask(self, queries: Queries, encoder: EncoderMemory) -> dict[str, Any] | None:
        """At boxes of any kind; where the content does not fit, with its own of the same rank.

        Where there are more boxes than contents, these are taken again in their order.
        """
        references = queries.references
        if references is None or references.shape[-1] != 4:
            return None
        like, own = self._like(encoder), self.net.query_embedding.weight
        if self._fits(queries, queries.content):
            content = queries.content.to(like)
        else:
            rank = torch.arange(references.shape[1], device=own.device) % len(own)
            content = own[rank][None].expand(len(references), -1, -1)
        return dict(query=content, reference_points=references.to(like), memory=encoder.tokens)

    def fresh(self, own: Queries, rngs: Sequence[np.random.Generator]) -> Queries:
        """Boxes anywhere, of its own sizes, each with the content of some query."""
        (content,) = _shuffled(rngs, own.content)
        return Queries(own.kind, content=content, references=_scattered(rngs, own.references))

    def proposals(self, encoder: EncoderMemory) -> tuple[Tensor, Tensor]:
        """Chosen by the highest logit of any class."""
        logits, deltas = self._scored(encoder)
        return logits.amax(-1), deltas


def decoder_of(net: nn.Module) -> Decoder | None:
    """How to run the decoder of ``net``; None for a network of another family."""
    names = [kind.__name__ for kind in type(net).__mro__]
    # Their classes descend from DINO; their queries come from text, or from a dense head.
    if {'GroundingDINO', 'DDQDETR'} & set(names):
        return None
    for name in names:
        if name == 'DeformableDETR':
            return TwoStageDecoder(net) if net.as_two_stage else DeformableDecoder(net)
        if name in _KINDS:
            return _KINDS[name](net)
    return None


_KINDS = {
    'DINO': DinoDecoder,
    'DABDETR': AnchorDecoder,
    'ConditionalDETR': Decoder,
    'DETR': Decoder,
}


def _turned(rngs: Sequence[np.random.Generator], *parts: Tensor) -> list[Tensor]:
    """Each query turned between two of its own; the same two in all ``parts`` ``[B, Q, D]``."""
    count, out = parts[0].shape[1], [[] for _ in parts]
    for b, rng in enumerate(rngs):
        rows = torch.from_numpy(rng.integers(count, size=(2, count)))
        angle = torch.from_numpy(rng.uniform(0, 2 * np.pi, size=(count, 1)))
        for part, made in zip(parts, out, strict=True):
            mean = part[b].mean(0)
            one, two = (part[b][row.to(part.device)] - mean for row in rows)
            made.append(mean + angle.cos().to(part) * one + angle.sin().to(part) * two)
    return [torch.stack(made) for made in out]


def _shuffled(rngs: Sequence[np.random.Generator], *parts: Tensor) -> list[Tensor]:
    """Rows in random order, each once; the same order in all ``parts`` ``[B, Q, D]``."""
    orders = [
        torch.from_numpy(rng.permutation(parts[0].shape[1])).to(parts[0].device) for rng in rngs
    ]
    return [torch.stack([part[b][order] for b, order in enumerate(orders)]) for part in parts]


def _scattered(rngs: Sequence[np.random.Generator], references: Tensor) -> Tensor:
    """Centres uniform in the image, the sizes of ``references`` in random order."""
    made = []
    for own, rng in zip(references, rngs, strict=True):
        centres = torch.from_numpy(rng.uniform(size=(len(own), 2))).to(own)
        order = torch.from_numpy(rng.permutation(len(own))).to(own.device)
        made.append(torch.cat([centres, own[order, 2:]], -1))
    return torch.stack(made)
