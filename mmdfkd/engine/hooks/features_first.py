import difflib
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from mmdfkd.registry import HOOKS

from .distill import distiller_of


def named_parts(net: nn.Module, names: Sequence[str], who: str) -> dict[str, nn.Module]:
    """Modules of a student by their dotted names.

    Args:
        net (nn.Module): The plain student.
        names (Sequence[str]): Of modules with parameters.
        who (str): Who asks, for the message.

    Raises:
        ValueError: If there is no such module with anything to train; offers near names.
    """
    modules = {n: m for n, m in net.named_modules() if n and any(True for _ in m.parameters())}
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3)
            hint = f' (did you mean {" or ".join(map(repr, near))}?)' if near else ''
            top = ', '.join(n for n in modules if '.' not in n)
            raise ValueError(
                f"{who}: the student has no part '{name}'{hint} with anything to train. Its parts "
                f'are {top}, and what is in them.'
            )
    return {name: modules[name] for name in names}


def refuse_wrapper(runner, who: str) -> None:
    """Refuse a run whose wrapper waits for the gradient of every parameter.

    Raises:
        RuntimeError: If it does.
    """
    if is_model_wrapper(runner.model) and not getattr(
        runner.model, 'find_unused_parameters', False
    ):
        raise RuntimeError(
            f'{who} changes what is trained, and a {type(runner.model).__name__} waits for the '
            'gradients of all that was trained when it was built: set '
            'model_wrapper_cfg.find_unused_parameters=True, or leave the hook out.'
        )


@HOOKS.register_module()
class FeaturesFirstHook(Hook):
    """Holds what follows the student's backbone fixed for the first part of a run.

    An inherited neck and inherited heads still fit the teacher's features, so the backbone is first
    brought back to these; afterwards everything is trained end to end. In the first part

    * the parts are as they were at the start: no gradient, no weight decay, evaluation mode;
    * heads that compare task outputs (``needs.response``) rest and cost nothing; those that compare
      features, such as ``mmdfkd.PyramidHead``, ``mmdfkd.FeatureHead`` and ``mmdfkd.BlockHead``,
      work;
    * what the working heads do not reach is fixed too.

    Which part it is depends on the iteration alone, so that a resumed run goes on as if it had not
    stopped.

    Args:
        until (float): Where the first part ends, as a share of the run's iterations, in [0, 1]; 0
            leaves it out. Defaults to 0.3.
        parts (Sequence[str], optional): Dotted names of the student's modules to fix. Defaults to
            all its children except ``backbone``: a detector's neck and heads, a classifier's neck
            and head.

    Raises:
        ValueError: If ``until`` is no share.
    """

    # After DistillHook, which checks the run and seeds the step.
    priority = 'HIGH'

    def __init__(self, until: float = 0.3, parts: Sequence[str] | None = None) -> None:
        if not 0 <= until <= 1:
            raise ValueError(
                f"FeaturesFirstHook: until is a share of the run's iterations, in [0, 1], not "
                f'{until}.'
            )
        self.until = until
        self.parts = [parts] if isinstance(parts, str) else parts
        self._modules: dict[str, nn.Module] = {}
        self._fixed: list[nn.Parameter] = []
        self._first = False

    def before_run(self, runner) -> None:
        """Check the parts, before anything costs time.

        Raises:
            ValueError: If a part is no module of the student, has nothing to train or is all of
                it; or if no head compares features.
            RuntimeError: If the run is distributed over a wrapper that expects every gradient.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        student = distiller_of(runner).student
        self._modules = self._named(student.net)
        if self._last(runner) == 0:
            return
        refuse_wrapper(runner, type(self).__name__)
        if all(head.needs.response for head in student.heads):
            raise ValueError(
                'FeaturesFirstHook: no head compares features, so that the first part of the run '
                'would train nothing. Add one, such as mmdfkd.PyramidHead, mmdfkd.FeatureHead or '
                'mmdfkd.BlockHead, or leave the hook out.'
            )
        held = {id(p) for module in self._modules.values() for p in module.parameters()}
        if all(id(p) in held for p in student.net.parameters()):
            raise ValueError(
                f'FeaturesFirstHook: {", ".join(self._modules)} is the whole student; name parts '
                'that leave something to train.'
            )

    def _named(self, net: nn.Module) -> dict[str, nn.Module]:
        """The parts by name."""
        if self.parts is None:
            found = {n: m for n, m in net.named_children() if n != 'backbone'}
            return {n: m for n, m in found.items() if any(True for _ in m.parameters())}
        return named_parts(net, self.parts, type(self).__name__)

    def _last(self, runner) -> int:
        """The first iteration in which everything is trained."""
        return round(self.until * runner.max_iters)

    def before_train(self, runner) -> None:
        """Fix the parts, unless the run is resumed behind the first part.

        Raises:
            ValueError: If nothing is left to train in the first part.
        """
        if runner.iter < self._last(runner):
            self._fix(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Let the parts go when their time has come; until then keep them in evaluation mode."""
        if not self._first:
            return
        if runner.iter >= self._last(runner):
            self._release(runner)
            return
        # Every time: the loop switches the whole model to train mode.
        for module in self._modules.values():
            module.eval()

    def after_train(self, runner) -> None:
        """A run that was the first part throughout leaves the student as it was built."""
        if self._first:
            self._release(runner)

    def _fix(self, runner) -> None:
        distiller = distiller_of(runner)
        student = distiller.student
        self._first = True
        work = [head for head in student.heads if not head.needs.response]
        rest = [head for head in student.heads if head.needs.response]
        unreached = student.unreached(distiller.teacher.adapter, distiller.image_size, work)
        parameters = [p for module in self._modules.values() for p in module.parameters()]
        parameters += unreached.values()
        parameters += [p for head in rest for p in head.parameters()]
        held = {id(p) for p in parameters}
        if not any(p.requires_grad and id(p) not in held for p in student.net.parameters()):
            raise ValueError(
                'FeaturesFirstHook: no head that compares features reaches what is behind '
                f'{", ".join(self._modules)}, so that the first part of the run would train '
                'nothing of the student.'
            )
        # Those that were fixed before, by the network itself or because no head reaches them, are
        # not this hook's to release.
        self._fixed = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        for parameter in self._fixed:
            parameter.requires_grad_(False)
            # With a gradient, of zero even, the optimiser would decay and move it.
            parameter.grad = None
        for head in rest:
            head.resting = True
        runner.logger.info(
            f'Features first: {", ".join(self._modules)} fixed until iteration '
            f'{self._last(runner)}; {len(rest)} of {len(student.heads)} distill heads rest.'
        )

    def _release(self, runner) -> None:
        student = distiller_of(runner).student
        self._first = False
        for parameter in self._fixed:
            parameter.requires_grad_(True)
        self._fixed = []
        for head in student.heads:
            head.resting = False
        for module in self._modules.values():
            module.train(student.net.training)
        runner.logger.info(f'Features first: trained end to end from iteration {runner.iter}.')
