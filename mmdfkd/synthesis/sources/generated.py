import copy
from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.models.generators import Generator
from mmdfkd.registry import MODELS, TASK_UTILS

from ..automatic import build_priors
from ..codes import KINDS, label_codes
from ..frozen import frozen
from ..layouts import proposed_layout
from ..objective import balanced_label, check_suited, suited_priors, taps_of, weighted_names
from ..priors.base import Prior
from ..priors.context import SynthesisContext
from ..priors.target import TargetPrior
from ..term_balance import TermBalance
from ..training import BothOptimizers, averaged, keep_best, summed, take_step, training
from .banked import BankedSource, bank_settings

_META = (None, 'fomaml', 'reptile')


@MODELS.register_module()
class GeneratorSource(BankedSource):
    """A generator, trained beside the student on what both networks say of its images.

    Every so many training steps there is a *round*: some gradient steps of the generator down the
    priors, through the frozen networks. Draws come from the generator as it then is, from a bank of
    the images that rounds have made, or from both. The published methods are settings of it
    (:class:`~mmdfkd.synthesis.sources.generator_presets.PresetGeneratorSource`).

    The generator is no part of what the Runner optimises: the source has its own optimiser, and the
    weights want gradients during a round only. In rounds it is in training mode, and in draws it is
    not, so that an image is a function of ``(seed, g)`` and of the weights, whatever else is in the
    batch; a round ends by setting the batch norms' statistics to those of the weights it has
    reached. Weights, statistics, optimiser, bank and the number of rounds are in the checkpoint.
    With several processes each takes its part of a batch, and gradients are averaged.

    After a collapse the terms count otherwise, or the generator starts anew
    (:class:`~mmdfkd.synthesis.term_balance.TermBalance`).

    Args:
        generator (Mapping): Config of a generator, such as ``dict(type='mmdfkd.ConvGenerator')``.
        priors (Sequence[Mapping] | str): Configs of the terms of the objective; ``'auto'`` takes
            those of the teacher's report.
        every (int): Training steps between two rounds.
        start (int): No round before this training step.
        batch (int): Images of a gradient step, of all processes together.
        steps (int): Gradient steps of a round.
        first (int): Rounds before the first training step; what asks the student is answered by
            the teacher there, so that the adversary rests.
        optimizer (Mapping): Of the generator; with ``meta`` of a round's copy of it.
        restart (bool): Whether every round starts a new optimiser.
        hold (bool): Whether the steps of a round share one batch of noise and labels.
        noise_lr (float): Above 0, the held noise is trained too, at this rate.
        meta (str | None): ``'fomaml'`` or ``'reptile'``: a round trains a copy of the generator,
            and the generator moves to where rounds go well from: along the sum of the copy's
            gradients, or towards the copy. Its images are those of the bank.
        meta_optimizer (Mapping | None): Of the generator with ``meta``; None is Adam at the
            round's rate times its steps, as published.
        life (int): Rounds after which the generator starts anew; 0 never.
        labelled (bool): Whether images are to show classes, balanced over each batch; of a detector
            boxes at the teacher's own proposals
            (:func:`~mmdfkd.synthesis.layouts.proposed_layout`).
        codes (str): What a generator with ``label_dims`` is told of a class: ``'prototypes'`` or
            ``'onehot'`` (:func:`~mmdfkd.synthesis.codes.label_codes`).
        view (Mapping | None): Config of an augmentation between generator and networks, in rounds.
        share (float): Share of the draws that come from the bank, once it has images.
        bank (Mapping | None): ``capacity`` (4096) and further settings of
            :class:`~mmdfkd.synthesis.ReplayBank`; None keeps no images.
        augment (Mapping | None): Config of an augmentation of the draws from the bank.

    Raises:
        ValueError: If an argument makes no sense.
        TypeError: If ``generator`` builds no generator.
    """

    def __init__(
        self,
        generator: Mapping,
        priors: Sequence[Mapping] | str = (
            dict(type='mmdfkd.TargetPrior', weight=1.0),
            dict(type='mmdfkd.DivergencePrior', weight=1.0),
        ),
        every: int = 1,
        start: int = 0,
        batch: int = 64,
        steps: int = 1,
        first: int = 0,
        optimizer: Mapping = dict(type='Adam', lr=1e-3, betas=(0.5, 0.999)),
        restart: bool = False,
        hold: bool = False,
        noise_lr: float = 0.0,
        meta: str | None = None,
        meta_optimizer: Mapping | None = None,
        life: int = 0,
        labelled: bool = True,
        codes: str = 'prototypes',
        view: Mapping | None = None,
        share: float = 0.0,
        bank: Mapping | None = None,
        augment: Mapping | None = None,
    ) -> None:
        super().__init__()
        for name, value in dict(every=every, batch=batch, steps=steps).items():
            if value < 1:
                raise ValueError(f'GeneratorSource: {name} must be at least 1, got {value}.')
        if first < 0 or life < 0 or noise_lr < 0:
            raise ValueError(
                'GeneratorSource: first, life and noise_lr are at least 0; got '
                f'{first}, {life} and {noise_lr}.'
            )
        if meta not in _META:
            raise ValueError(f'GeneratorSource: meta must be one of {_META}, got {meta!r}.')
        if codes not in KINDS:
            raise ValueError(f'GeneratorSource: codes must be one of {KINDS}, got {codes!r}.')
        if not 0 <= share <= 1:
            raise ValueError(f'GeneratorSource: share is from 0 to 1, got {share}.')
        if share and bank is None:
            raise ValueError(f'GeneratorSource: share={share} needs a bank: set bank=dict().')
        if noise_lr and not hold:
            raise ValueError('GeneratorSource: noise is trained where it is held: set hold=True.')
        if meta is not None and not share:
            raise ValueError(
                "GeneratorSource: with meta the images of a round are its copy's: set bank and "
                'share to draw them.'
            )
        self.generator = MODELS.build(generator)
        if not isinstance(self.generator, Generator):
            raise TypeError(
                'GeneratorSource: generator must be one of mmdfkd.models.generators, such as '
                f'mmdfkd.ConvGenerator, not {type(self.generator).__name__}.'
            )
        # Outside rounds nobody trains it: neither the Runner's optimiser nor its DDP wrapper.
        self.generator.requires_grad_(False)
        self.priors = build_priors(priors, 'GeneratorSource', targets=labelled)
        if not labelled and any(isinstance(prior, TargetPrior) for prior in self.priors):
            raise ValueError(
                'GeneratorSource: mmdfkd.TargetPrior asks for targets: set labelled=True, or use '
                "mmdfkd.ClassPrior(mode='self')."
            )
        self.every = every
        self.start = start
        self.batch = batch
        self.steps = steps
        self.first = first
        self.optimizer_cfg = dict(optimizer)
        self.restart = restart
        self.hold = hold or self.generator.noisy_layers > 0
        self.noise_lr = noise_lr
        self.meta = meta
        if meta_optimizer is None:
            rate = self.optimizer_cfg.get('lr', 1e-3) * steps
            meta_optimizer = dict(type='Adam', lr=rate, betas=(0.5, 0.999))
        self.meta_cfg = dict(meta_optimizer)
        self.life = life
        self.labelled = labelled
        self.codes_kind = codes
        self.view = None if view is None else TASK_UTILS.build(view)
        self.share = share
        self.bank_cfg = None if bank is None else bank_settings('GeneratedSource', bank)
        self.augment = None if augment is None else TASK_UTILS.build(augment)
        self.num_classes = 0
        # Whether an image shows one class; a detector's shows boxes.
        self._shows_class = False
        self._used: list[Prior] = list(self.priors)
        self.register_buffer('rounds', torch.zeros((), dtype=torch.int64))
        self.register_buffer('codes', torch.zeros((0, self.generator.label_dims)))
        self.optimizer = self._new_optimizer()
        self.balance = TermBalance()

    def _new_optimizer(self) -> torch.optim.Optimizer | None:
        """What lasts from round to round; None where nothing does."""
        if self.restart and self.meta is None:
            return None
        cfg = self.optimizer_cfg if self.meta is None else self.meta_cfg
        return OPTIMIZERS.build(dict(cfg, params=list(self.generator.parameters())))

    # Start --------------------------------------------------------------------------------------

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Choose the priors that suit the teacher and open the bank; says which are used.

        Raises:
            ValueError: If no prior suits the teacher, noisy layers are too few for the batch, or
                the bank does not fit.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        self.num_classes = teacher.num_classes
        self._shows_class = self.labelled and teacher.family == 'classifier'
        self._used = suited_priors(self.priors, teacher, 'Generator')
        check_suited(self._used, 'GeneratorSource')
        layers = self.generator.noisy_layers
        if layers and self.batch > layers * self.num_classes:
            raise ValueError(
                f'GeneratorSource: {layers} noisy layers and {self.num_classes} classes make '
                f'{layers * self.num_classes} different images, fewer than batch={self.batch}: set '
                f'noisy_layers to at least {ceil(self.batch / self.num_classes)}.'
            )
        if self.bank_cfg is not None:
            self.open_bank(self.folder, **{'capacity': 4096, **self.bank_cfg})
        self.restore_bank()
        print_log(
            f'Generator: {type(self.generator).__name__}, {self.steps} steps of {self.batch} '
            f'images every {self.every} training steps down {weighted_names(self._used)}',
            'current',
        )

    def fill(self, teacher: Adapter) -> None:
        """Draw the weights, make the labels' codes, and run the first rounds."""
        self._reset(0)
        if self.generator.label_dims:
            codes = label_codes(teacher, self.codes_kind, self.generator.label_dims)
            self.codes = codes.to(self.device)
        self.keep_replaced()
        # Of the weights as drawn, for draws before the first round.
        self._settle(self._inputs(0))
        for _ in range(self.first):
            self.round(teacher, teacher, 0)
        self._replaces = self.bank is not None

    def _seeded(self, purpose: str, number: int) -> torch.Generator:
        seed = int(stream(purpose, self.seed, number).integers(1 << 62))
        return torch.Generator().manual_seed(seed)

    def _reset(self, number: int, purpose: str = 'generator-weights') -> None:
        """Weights from the seed and the number of the round, and an optimiser that knows none."""
        self.generator.reset(self._seeded(purpose, number))
        self.optimizer = self._new_optimizer()

    def on_collapse(self, reasons: Sequence[str]) -> str | None:
        """Weigh the terms otherwise; after repeated alarms start the generator anew.

        Images that the bank holds stay until others take their place.
        """
        said = self.balance.shift(self._used, reasons)
        if said is not None:
            return f'{type(self).__name__}: {said}'
        self._reset(int(self.balance.collapses[0]), 'generator-anew')
        self._settle(self._inputs(int(self.rounds) * self.steps))
        return f'{type(self).__name__} starts its generator anew'

    # Checkpoint ---------------------------------------------------------------------------------

    def get_extra_state(self) -> dict:
        """The optimiser's state and the bank's index."""
        return dict(
            optimizer=None if self.optimizer is None else self.optimizer.state_dict(),
            bank=self.bank_index(),
        )

    def set_extra_state(self, state: dict) -> None:
        """Take both from a checkpoint."""
        if self.optimizer is not None and state['optimizer'] is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state['optimizer']))
        self._restored = state['bank']
        self.restore_bank()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # As many codes as the teacher of the checkpoint has classes.
        codes = state_dict.get(prefix + 'codes')
        if codes is not None:
            self.codes = torch.zeros(codes.shape, device=self.codes.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # Rounds -------------------------------------------------------------------------------------

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Train the generator if it is time.

        Returns:
            dict[str, float]: Of the round's last step, the objective and each unweighted term;
                empty when it is not time.

        Raises:
            FloatingPointError: If the objective is not finite; nothing was updated with it.
        """
        self.drop_replaced()
        if iteration < self.start or (iteration - self.start) % self.every:
            return {}
        return self.round(teacher, student, iteration)

    def round(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Some steps of the generator; its images go into the bank if there is one.

        Args:
            teacher (Adapter): The teacher.
            student (Adapter): The student.
            iteration (int): Number of training steps done.
        """
        number = int(self.rounds)
        if self.life and number and number % self.life == 0:
            self._reset(number)
        self.generator.renew(self._seeded('generator-noise', number))
        net = copy.deepcopy(self.generator) if self.meta else self.generator
        with frozen(teacher.net, student.net), training(net), torch.enable_grad():
            images, inputs, logs = self._descend(net, teacher, student, number)
        for name, value in net.named_buffers() if self.meta else ():
            self.generator.get_buffer(name).copy_(value)
        if self.share < 1:
            self._settle(inputs)
        if self.bank is not None:
            shown = Targets(labels=inputs['labels']) if self._shows_class else Targets()
            self.bank.append(images, shown, iteration=iteration)
        self.rounds += 1
        return logs

    def _descend(
        self, net: Generator, teacher: Adapter, student: Adapter, number: int
    ) -> tuple[Tensor, dict, dict[str, float]]:
        """The steps of a round on ``net``.

        Returns:
            tuple[Tensor, dict, dict[str, float]]: The best image met for each place of the last
                batch, what that batch was made from, and values to log.
        """
        inner, meta_gradient, best = None, None, None
        weights = list(net.parameters())
        for step in range(self.steps):
            if step == 0 or not self.hold:
                inputs = self._inputs(number * self.steps + step)
                best = None
            if inner is None:
                inner = self._inner_optimizer(net, inputs['noise'])
            canvas = self._render(net, inputs)
            ctx, terms = self._terms(canvas, inputs, teacher, student, number, step)
            each = sum(self.balance.weight_of(prior) * term for prior, term in terms.items())
            each = each.expand(len(canvas)) if each.dim() == 0 else each
            objective = each.mean()
            if not torch.isfinite(objective):
                found = ', '.join(f'{p.name} {t.mean().item():g}' for p, t in terms.items())
                raise FloatingPointError(
                    f'The objective of the generator is {objective.item()} in round {number}: '
                    f'{found}. Nothing was updated with it: lower the rate of its optimiser or '
                    'that weight.'
                )
            best = keep_best(best, canvas, each)
            trained = [*weights, inputs['noise']] if self.noise_lr else weights
            gradients = torch.autograd.grad(
                objective, trained, allow_unused=True, materialize_grads=True
            )
            own = [*averaged(gradients[: len(weights)]), *gradients[len(weights) :]]
            if self.meta == 'fomaml':
                meta_gradient = summed(meta_gradient, own[: len(weights)])
            take_step(inner, trained, own)
        if self.meta == 'reptile':
            meta_gradient = [
                mine.detach() - theirs.detach()
                for mine, theirs in zip(self.generator.parameters(), weights, strict=True)
            ]
        if self.meta:
            take_step(self.optimizer, list(self.generator.parameters()), meta_gradient)
        with torch.no_grad():
            for prior in self._used:
                prior.finished(ctx)
        logs = {
            f'generator/{prior.name}': float(term.detach().mean()) for prior, term in terms.items()
        }
        return best[1], inputs, {'generator/objective': float(objective.detach()), **logs}

    def _inner_optimizer(self, net: Generator, noise: Tensor) -> torch.optim.Optimizer:
        """Of one round: the lasting one unless it restarts, with the noise where that is trained.

        The noise of a round is new, so its optimiser is.
        """
        if self.meta is None and not self.restart:
            if not self.noise_lr:
                return self.optimizer
            own = OPTIMIZERS.build(dict(self.optimizer_cfg, params=[noise], lr=self.noise_lr))
            return BothOptimizers(self.optimizer, own)
        groups = [dict(params=list(net.parameters()))]
        if self.noise_lr:
            groups.append(dict(params=[noise], lr=self.noise_lr))
        return OPTIMIZERS.build(dict(self.optimizer_cfg, params=groups))

    def _terms(
        self,
        canvas: Tensor,
        inputs: Mapping,
        teacher: Adapter,
        student: Adapter,
        number: int,
        step: int,
    ) -> tuple[SynthesisContext, dict[Prior, Tensor]]:
        """The priors' terms of a batch of generated images."""
        images = canvas
        if self.view is not None:
            # A view of its own for every step.
            first = (number * self.steps + step) * self.batch
            images = self.view(canvas, self.seed, [first + i for i in inputs['places']])
        taps = taps_of(self._used, teacher)
        ctx = SynthesisContext(
            images,
            Targets(labels=inputs['labels']) if self.labelled else Targets(),
            teacher,
            student,
            taps=taps,
            canvas=None if images is canvas else canvas,
            seed=self.seed,
            serials=inputs['serials'],
            step=step,
        )
        # One pass of the teacher serves the proposals, the layout and the priors.
        memory = ctx.teacher_memory
        with torch.no_grad():
            ctx.probe = teacher.propose(memory)
        if ctx.probe is not None:
            ctx.targets = Targets()
            if self.labelled:
                logits = ctx.teacher_response.logits.detach()
                ctx.targets = proposed_layout(ctx.probe, logits, inputs['labels'])
        return ctx, {prior: prior(ctx) for prior in self._used}

    def _inputs(self, batch: int) -> dict:
        """What the images of this process in one batch are made from."""
        rank, world = get_dist_info()
        count = ceil(self.batch / world)
        places = [(rank * count + i) % self.batch for i in range(count)]
        serials = [batch * self.batch + place for place in places]
        inputs = self._drawn('generator-batch', serials)
        if self.noise_lr:
            inputs['noise'].requires_grad_()
        return dict(inputs, places=places, serials=serials)

    def _drawn(self, purpose: str, serials: Sequence[int]) -> dict[str, Tensor]:
        """Noise, label and noisy layer of each number: a function of purpose, seed and number."""
        dims = self.generator.noise_dims
        noise = np.stack([self.rng(purpose, n).standard_normal(dims, np.float32) for n in serials])
        return dict(
            noise=torch.from_numpy(noise).to(self.device),
            labels=torch.tensor([self._label(purpose, n) for n in serials], device=self.device),
            layers=torch.tensor(
                [n // self.num_classes % max(self.generator.noisy_layers, 1) for n in serials],
                device=self.device,
            ),
        )

    def _label(self, purpose: str, number: int) -> int:
        """The class wanted: every pass over the classes has its own order."""
        return balanced_label(f'{purpose}-classes', self.seed, number, self.num_classes)

    def _render(self, net: Generator, inputs: Mapping[str, Tensor]) -> Tensor:
        """The images of these inputs, ``[B, 3, H, W]``."""
        codes = self.codes[inputs['labels']] if net.label_dims else None
        return net(inputs['noise'], self.image_size, codes, inputs['layers'])

    @torch.no_grad()
    def _settle(self, inputs: Mapping[str, Tensor]) -> None:
        """Set the batch norms' statistics to those of the present weights on the last batch.

        Running averages lag behind weights that move fast, and draws are made with the statistics.
        """
        norms = [m for m in self.generator.modules() if isinstance(m, _BatchNorm)]
        if not norms:
            return
        kept = [layer.momentum for layer in norms]
        for layer in norms:
            layer.momentum = 1.0
        try:
            with training(self.generator):
                self._render(self.generator, inputs)
        finally:
            for layer, momentum in zip(norms, kept, strict=True):
                layer.momentum = momentum
        if get_dist_info()[1] > 1:
            for layer in norms:
                for value in (layer.running_mean, layer.running_var):
                    all_reduce(value, 'mean')

    # Draws --------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """``share`` of the images from the bank, the others from the generator.

        Labels come with them where every image has one.
        """
        if self.image_size is None:
            raise RuntimeError('GeneratorSource: prepare() must run before images are drawn.')
        chosen = self._chosen(items)
        rest = [position for position in range(len(items)) if position not in chosen]
        images = torch.empty((len(items), 3, *self.image_size), device=self.device)
        labels = torch.full((len(items),), -1, device=self.device)
        if chosen:
            taken, targets, _ = self.bank.take(list(chosen.values()), self.device)
            if self.augment is not None:
                taken = self.augment(taken, self.seed, [items[p]['g'] for p in chosen])
            images[list(chosen)] = taken
            if targets.labels is not None:
                labels[list(chosen)] = targets.labels.to(self.device)
        if rest:
            inputs = self._drawn('generated', [items[p]['g'] for p in rest])
            with frozen(self.generator):
                images[rest] = self._render(self.generator, inputs)
            if self._shows_class and self.generator.label_dims:
                labels[rest] = inputs['labels']
        return images, Targets(labels=labels) if (labels >= 0).all() else Targets()

    def _chosen(self, items: list[dict]) -> dict[int, int]:
        """Positions of the draws that come from the bank, and the ids of their images."""
        if self.bank is None or not len(self.bank):
            return {}
        ids = self.bank.ids
        shares = self.bank.weights().cumsum()
        chosen = {}
        for position, item in enumerate(items):
            whether, which = self.rng('generated-bank', item['g']).random(2)
            if whether < self.share:
                place = np.searchsorted(shares, which * shares[-1], side='right')
                chosen[position] = int(ids[min(int(place), len(ids) - 1)])
        return chosen
