from collections.abc import Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from mmdfkd.registry import HOOKS

from .distill import distiller_of
from .features_first import named_parts, refuse_wrapper


@HOOKS.register_module()
class FreezeScheduleHook(Hook):
    """Holds parts of the student fixed, each for a stretch of the run.

    A fixed part has no gradient and no weight decay and is in evaluation mode; gradients flow
    through it to what is in front. All heads work on: use ``mmdfkd.FeaturesFirstHook`` where those
    that compare answers are to rest. What is fixed depends on the iteration alone, so that a
    resumed run goes on as if it had not stopped.

    Args:
        stages (Sequence[Mapping]): Each with ``names``, dotted names of the student's modules;
            ``until``, the share of the run's iterations where they are let go, in (0, 1]; and
            optionally ``begin``, the share from which they are fixed (0).

    Raises:
        ValueError: If there is no stage, or one has other keys or no stretch in [0, 1].
    """

    # After DistillHook, which checks the run and seeds the step.
    priority = 'HIGH'

    def __init__(self, stages: Sequence[Mapping]) -> None:
        if not stages:
            raise ValueError('FreezeScheduleHook: there is no stage; leave the hook out.')
        self.stages = []
        for stage in stages:
            keys = set(stage)
            if not {'names', 'until'} <= keys <= {'names', 'until', 'begin'}:
                raise ValueError(
                    'FreezeScheduleHook: a stage has names, until and optionally begin, not '
                    f'{sorted(keys)}.'
                )
            names, begin, until = stage['names'], stage.get('begin', 0.0), stage['until']
            if not 0 <= begin < until <= 1:
                raise ValueError(
                    "FreezeScheduleHook: begin and until are shares of the run's iterations with "
                    f'0 <= begin < until <= 1, not {begin} and {until}.'
                )
            self.stages.append(([names] if isinstance(names, str) else list(names), begin, until))
        self._modules: list[dict[str, nn.Module]] = []
        self._now: tuple[int, ...] = ()
        self._fixed: list[nn.Parameter] = []

    def before_run(self, runner) -> None:
        """Find the parts, before anything costs time.

        Raises:
            ValueError: If a part is no module of the student, or at some time nothing is left to
                train.
            RuntimeError: If the run is distributed over a wrapper that expects every gradient.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        refuse_wrapper(runner, type(self).__name__)
        net = distiller_of(runner).student.net
        who = type(self).__name__
        self._modules = [named_parts(net, names, who) for names, _, _ in self.stages]
        trained = {id(p) for p in net.parameters() if p.requires_grad}
        for _, begin, _ in self.stages:
            held = {id(p) for p in self._parameters(self._at(begin))}
            if trained <= held:
                raise ValueError(
                    f'{who}: at {begin:.0%} of the run every trained weight of the student is '
                    'fixed; leave something to train.'
                )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Fix and let go; keep what is fixed in evaluation mode."""
        now = self._at(runner.iter / runner.max_iters)
        if now != self._now:
            self._change(runner, now)
        # Every time: the loop switches the whole model to train mode.
        for stage in now:
            for module in self._modules[stage].values():
                module.eval()

    def after_train(self, runner) -> None:
        """Leave the student as it was built."""
        if self._now:
            self._change(runner, ())

    def _at(self, share: float) -> tuple[int, ...]:
        # Rounding errors of iter / max_iters must not shift a stage by one step.
        share += 1e-9
        return tuple(i for i, (_, begin, until) in enumerate(self.stages) if begin <= share < until)

    def _parameters(self, stages: Sequence[int]) -> list[nn.Parameter]:
        found = (p for i in stages for m in self._modules[i].values() for p in m.parameters())
        return list(dict.fromkeys(found))

    def _change(self, runner, now: tuple[int, ...]) -> None:
        for parameter in self._fixed:
            parameter.requires_grad_(True)
        net = distiller_of(runner).student.net
        for stage in set(self._now) - set(now):
            for module in self._modules[stage].values():
                module.train(net.training)
        # Those that were fixed before are not this hook's to release.
        self._fixed = [p for p in self._parameters(now) if p.requires_grad]
        for parameter in self._fixed:
            parameter.requires_grad_(False)
            # With a gradient, of zero even, the optimiser would decay and move it.
            parameter.grad = None
        self._now = now
        names = ', '.join(n for stage in now for n in self._modules[stage]) or 'nothing'
        runner.logger.info(f'From iteration {runner.iter} {names} of the student is fixed.')
