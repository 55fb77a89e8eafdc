from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from mmdfkd.registry import HOOKS
from mmdfkd.utils.data_audit import DataAudit

_KEY = 'images_read'


@HOOKS.register_module()
class DataAuditHook(Hook):
    """Keeps validation out of the count of images read, and the count in the checkpoints.

    The audit itself listens from the moment the distiller is built; see
    :class:`mmdfkd.utils.data_audit.DataAudit`.
    """

    priority = 'VERY_HIGH'

    def before_val(self, runner) -> None:
        """Validation may read the user's images."""
        DataAudit.install_once().pause()

    def after_val(self, runner) -> None:
        """Training may not."""
        DataAudit.install_once().pause(False)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the count: a resumed run goes on counting."""
        checkpoint.setdefault('dfkd_state', {})[_KEY] = DataAudit.install_once().images_read

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add what was read before the interruption."""
        # The first process's, whose count the file has; at the end all are summed.
        if runner._resume and is_main_process():
            DataAudit.install_once().images_read += checkpoint.get('dfkd_state', {}).get(_KEY, 0)
