from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdfkd.datasets.renderers.stream import stream

from .base import Adapter
from .decoders import decoder_of
from .layout import usual_sizes
from .matching import SetCriterion, in_shares, place_cost
from .normalizer import Normalizer
from .observation import EncoderMemory, Matching, Memory, Observation, Probe, Targets
from .queries import Queries, QueryAnswers, QueryProbe, QueryResponse
from .taps import tapped


class DetrAdapter(Adapter):
    """mmdet's DETR, Conditional DETR, DAB-DETR, Deformable DETR and DINO.

    Both networks are asked at the teacher's queries, so that their answers are pairs without any
    matching (KD-DETR, Wang et al., CVPR 2024). What a query is depends on the decoder:

    - DETR, Conditional DETR, Deformable DETR without two stages: the teacher's embeddings, where
      both networks have one decoder and one width. Otherwise the probe counts as its boxes alone.
    - DAB-DETR, DINO, Deformable DETR with two stages: the boxes that the decoder starts from, at
      any width. What belongs to them is the teacher's where it fits (DAB-DETR's patterns, DINO's
      content), else the network's own.

    Asked at boxes alone, as by layouts, a network answers each by its own query whose box is
    nearest. Its own queries are always in reach as ``response.own``.

    mmdet's ``loss`` is not used: in eval mode it fails for DINO and Deformable DETR, in train mode
    DINO's denoising draws from the global generator and needs ground truth.
    """

    family = 'DETR-like'
    examples = 'DETR, Conditional DETR, DAB-DETR, Deformable DETR, DINO'
    sizes_from_images = True
    #: Calls of :meth:`target_loss` at one layout after which a box keeps its query, where nobody
    #: says how many there will be.
    rematch = 20

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__(net, normalizer)
        self.decoder = decoder_of(net)

    @classmethod
    def supports(cls, net: nn.Module) -> bool:
        """True for the five and what descends from them; not for DDQ and Grounding DINO."""
        return decoder_of(net) is not None

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return int(self.net.bbox_head.num_classes)

    def features(self, inputs: Tensor) -> tuple:
        """Backbone and neck: one ``[B, C, H, W]`` per level."""
        return tuple(self.net.extract_feat(inputs))

    def encode(self, images: Tensor, taps: Sequence[str] = ()) -> Memory:
        """Backbone, neck and encoder, once; see :meth:`Adapter.encode`."""
        with tapped(self.net, taps) as caught:
            inputs = self.normalizer(images)
            sizes = [(x.shape[-2], x.shape[-1]) for x in (images, inputs)]
            memory = Memory(self.features(inputs), sizes[0], caught, input_size=sizes[1])
            self.encoded(memory)
        return memory

    def encoded(self, memory: Memory) -> EncoderMemory:
        """The encoder's output; computed from the features where the memory has none yet."""
        if memory.encoder is None:
            given, decoder = self.net.pre_transformer(memory.feats, self._samples(memory))
            before = self.net.forward_encoder(**given)
            # DETR and its like read the last level only.
            levels = memory.feats if 'spatial_shapes' in decoder else memory.feats[-1:]
            memory.encoder = EncoderMemory(
                tokens=before['memory'],
                shapes=tuple((f.shape[-2], f.shape[-1]) for f in levels),
                mask=decoder['memory_mask'],
                before_decoder=before,
                decoder=decoder,
            )
        return memory.encoder

    def _samples(self, memory: Memory) -> list[DetDataSample]:
        """What mmdet reads of the images: their size, and that of the padded batch."""
        h, w = memory.image_size
        divisor = self.normalizer.divisor
        meta = dict(
            img_shape=(h, w),
            ori_shape=(h, w),
            batch_input_shape=(h + -h % divisor, w + -w % divisor),
            scale_factor=(1.0, 1.0),
        )
        return [DetDataSample(metainfo=dict(meta)) for _ in range(len(memory.feats[0]))]

    def own_answers(self, memory: Memory) -> QueryAnswers:
        """Every decoder layer at the network's own queries, differentiable."""
        encoder = self.encoded(memory)
        return self.decoder.run(self.decoder.own(encoder), encoder)

    @torch.no_grad()
    def propose(self, memory: Memory, targets: Targets | None = None) -> QueryProbe:
        """Its own queries, with the boxes they lead to; see also :meth:`refreshed`."""
        encoder = self.encoded(memory)
        inputs = self.decoder.own(encoder)
        return self._probe(memory, inputs, self.decoder.run(inputs, encoder))

    def _probe(self, memory: Memory, inputs: dict, answers: QueryAnswers) -> QueryProbe:
        boxes = _clipped(answers.pixels(memory.image_size), memory.image_size)
        return QueryProbe(
            boxes=list(boxes.detach()),
            scores=list(answers.probabilities.amax(-1).detach()),
            queries=self.decoder.read(inputs),
        )

    @torch.no_grad()
    def refreshed(self, probe: QueryProbe, seed: int, serials: Sequence[int]) -> QueryProbe:
        """The probe with as many random queries; a function of ``(seed, serial)`` of each image.

        Args:
            probe (QueryProbe): This network's own.
            seed (int): Of the run.
            serials (Sequence[int]): The global index of each image.

        Raises:
            ValueError: If there is not one serial for each image.
        """
        if len(serials) != len(probe.boxes):
            raise ValueError(
                f'Fresh queries need the global index of each of {len(probe.boxes)} images, but '
                f'got {len(serials)}.'
            )
        rngs = [stream('fresh queries', seed, int(serial)) for serial in serials]
        fresh = self.decoder.fresh(probe.queries, rngs)
        return QueryProbe(probe.boxes, probe.scores, probe.queries, fresh)

    def answer(self, memory: Memory, probe: Probe | None = None) -> QueryResponse:
        """Every decoder layer's classes and boxes at the probe's queries, else at its own."""
        encoder = self.encoded(memory)
        asked = fresh = None
        if isinstance(probe, QueryProbe):
            asked = self._asked(probe.queries, encoder)
            fresh = None if probe.fresh is None else self._asked(probe.fresh, encoder)
        if asked is not None:
            return self._response(memory, asked, asked, fresh)
        own = self.own_answers(memory)
        if probe is None:
            # As in prediction: nothing is computed twice.
            return self._response(memory, own, own, own=own, dense=False)
        return self._response(memory, self._nearest(own, probe, memory), None, fresh, own)

    def _asked(self, queries: Queries, encoder: EncoderMemory) -> QueryAnswers | None:
        inputs = self.decoder.ask(queries, encoder)
        return None if inputs is None else self.decoder.run(inputs, encoder)

    def _nearest(self, own: QueryAnswers, probe: Probe, memory: Memory) -> tuple[Tensor, Tensor]:
        """Rows of logits and boxes of the query whose box is nearest to each of the probe's."""
        logits, boxes = [], []
        for b, wanted in enumerate(probe.boxes):
            place = own.boxes[-1, b]
            wanted = in_shares(wanted.to(place), memory.image_size)
            with torch.no_grad():
                cost = place_cost(place.float(), wanted.float(), memory.image_size)
                nearest = cost.argmin(0)
            logits.append(own.with_background[b, nearest])
            boxes.append(place[nearest])
        return torch.cat(logits), torch.cat(boxes)

    def _response(
        self,
        memory: Memory,
        rows: QueryAnswers | tuple[Tensor, Tensor],
        asked: QueryAnswers | None,
        fresh: QueryAnswers | None = None,
        own: QueryAnswers | None = None,
        dense: bool = True,
    ) -> QueryResponse:
        if isinstance(rows, QueryAnswers):
            rows = rows.with_background.flatten(0, 1), rows.boxes[-1].flatten(0, 1)
        graph = torch.is_grad_enabled()

        def find_own() -> QueryAnswers:
            if own is not None:
                return own
            with torch.set_grad_enabled(graph):
                return self.own_answers(memory)

        dense_logits = dense_deltas = None
        encoder = self.encoded(memory)

        def find_queries() -> Queries:
            with torch.no_grad():
                return self.decoder.read(self.decoder.own(encoder))

        def ask(queries: Queries) -> QueryAnswers | None:
            with torch.set_grad_enabled(graph):
                return self._asked(queries, encoder)

        proposals = self.decoder.proposals(encoder) if dense else None
        if proposals is not None:
            dense_logits, dense_deltas = (
                _maps(x, encoder.shapes) for x in (proposals[0][..., None], proposals[1])
            )
        h, w = memory.image_size

        def find_boxes() -> Tensor:
            return bbox_cxcywh_to_xyxy(rows[1]) * rows[1].new_tensor([w, h, w, h])

        return QueryResponse(
            *rows,
            dense_logits,
            dense_deltas,
            asked,
            fresh,
            find_own,
            find_queries,
            ask,
            find_boxes=find_boxes,
        )

    @torch.no_grad()
    def observe(
        self,
        images: Tensor,
        taps: Sequence[str] = (),
        respond: bool = True,
        *,
        fresh: bool = False,
        seed: int = 0,
        serials: Sequence[int] | None = None,
    ) -> Observation:
        """As :meth:`Adapter.observe`; one pass of the decoder gives both probe and answer.

        Raises:
            ValueError: If fresh queries are wanted and the images have no global indices.
        """
        memory = self.encode(images, taps)
        if not respond:
            return Observation(memory, find_detections=lambda: self.detect(memory))
        encoder = memory.encoder
        inputs = self.decoder.own(encoder)
        own = self.decoder.run(inputs, encoder)
        probe = self._probe(memory, inputs, own)
        asked = None
        if fresh:
            if serials is None:
                raise ValueError(
                    'Fresh queries are a function of the global index of each image: give '
                    'observe() seed and serials.'
                )
            probe = self.refreshed(probe, seed, serials)
            asked = self._asked(probe.fresh, encoder)
        response = self._response(memory, own, own, asked, own)
        return Observation(memory, probe, response, lambda: self._detections(memory, own))

    @torch.no_grad()
    def class_votes(self, memory: Memory) -> Tensor:
        """Per class, its highest probability at any query of the image."""
        return self.own_answers(memory).probabilities.amax(1)

    @torch.no_grad()
    def class_places(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Per class, the box of the query that is surest of it."""
        own = self.own_answers(memory)
        votes, best = own.probabilities.max(1)
        boxes = _clipped(own.pixels(memory.image_size), memory.image_size)
        return votes, boxes.gather(1, best[..., None].expand(-1, -1, 4))

    @torch.no_grad()
    def box_sizes(self, memory: Memory | None = None) -> Tensor:
        """Of the boxes that its queries give on images: it has no anchors.

        Of each image the surest quarter of the queries, and of their boxes those between the 5th
        and the 95th percentile of area.

        Raises:
            ValueError: Without images.
        """
        if memory is None:
            raise ValueError(
                'A DETR-like network has no anchors; the sizes it finds are read from images: '
                'box_sizes(adapter.encode(images)).'
            )
        own = self.own_answers(memory)
        boxes = _clipped(own.pixels(memory.image_size), memory.image_size)
        surest = own.probabilities.amax(-1).topk(max(boxes.shape[1] // 4, 1), 1).indices
        return usual_sizes(boxes.gather(1, surest[..., None].expand(-1, -1, 4)).flatten(0, 1))

    @torch.no_grad()
    def detect(self, memory: Memory) -> list[InstanceData]:
        """Final detections of each image: ``bboxes`` in its pixels, ``scores``, ``labels``."""
        return self._detections(memory, self.own_answers(memory))

    @torch.no_grad()
    def _detections(self, memory: Memory, own: QueryAnswers) -> list[InstanceData]:
        metas = [sample.metainfo for sample in self._samples(memory)]
        return self.net.bbox_head.predict_by_feat(
            own.logits, own.boxes, batch_img_metas=metas, rescale=False
        )

    def target_loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Layout loss: DETR's own set loss of the last decoder layer, for each image by itself.

        The matching is kept in ``targets.matching``. It is made anew in the first calls, as many as
        that says (:attr:`rematch` where there is none yet), and then stays, so that a box is not
        passed from query to query for ever. Where queries are chosen from the image (two stages,
        DINO) their indices mean nothing for the next image, and it is always made anew.

        Returns:
            Tensor: ``[B]``.
        """
        own = self.own_answers(memory)
        criterion = SetCriterion.of_head(self.net.bbox_head)
        if targets.matching is None:
            targets.matching = Matching(self.rematch)
        # Teacher and student may share the targets, but not the queries.
        matching = targets.matching
        calls, pairs = matching.found.get(self.net, (0, None))
        if pairs is None or calls < matching.rematch or not self.decoder.steady:
            pairs = [None] * len(targets.boxes)
        losses = []
        for b, (boxes, labels) in enumerate(zip(targets.boxes, targets.box_labels, strict=True)):
            place = own.boxes[-1, b]
            wanted = in_shares(boxes.to(place), memory.image_size)
            case = own.logits[-1, b], place, wanted, labels
            if pairs[b] is None:
                pairs[b] = criterion.match(*case, memory.image_size)
            losses.append(criterion.loss(*case, pairs[b], memory.image_size))
        matching.found[self.net] = calls + 1, pairs
        return torch.stack(losses)


def _clipped(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes ``[..., 4]`` in xyxy pixels, inside the image."""
    h, w = image_size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([w, h, w, h]))


def _maps(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """``[B, N, C]`` as one ``[B, C, h, w]`` per level."""
    parts = tokens.split([h * w for h, w in shapes], dim=1)
    return tuple(
        part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)
    )
