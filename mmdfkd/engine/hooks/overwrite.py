from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmdfkd.registry import HOOKS
from mmdfkd.utils.run_files import clear_run, named_files


@HOOKS.register_module()
class OverwriteHook(Hook):
    """Deletes what an earlier run left in the work directory, where the config says ``overwrite``.

    Only when everything is loaded and the first step can be made: a run that cannot start destroys
    nothing.
    """

    priority = 'VERY_HIGH'

    @master_only
    def before_train(self, runner) -> None:
        """Clear the way.

        Raises:
            RuntimeError: If this run itself reads one of the files.
        """
        if runner.cfg.get('overwrite') and not runner._resume:
            needed = named_files([runner.cfg.get('model'), runner._load_from])
            clear_run(runner.work_dir, needed, runner.timestamp)
