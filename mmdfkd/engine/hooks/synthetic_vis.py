from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmdfkd.registry import HOOKS
from mmdfkd.utils.run_files import PICTURES
from mmdfkd.visualization import save_image, synthetic_grid

from .distill import distiller_of
from .export import class_names
from .newest import aside, can_look, newest_images


@HOOKS.register_module()
class SyntheticVisHook(Hook):
    """Draws the newest images with what the teacher sees in them and where it looks.

    At the first step, and then every ``interval`` steps, into
    ``<work_dir>/vis_data/synthetic_<step>.png`` and to the visualizer (TensorBoard). Boxes or the
    class are the teacher's; beside each image is the class token's attention in its last layer,
    where it has one. Training is not touched. Learned images may show what the teacher was trained
    on: treat the pictures alike. Of a run that is not data-free nothing is drawn: its images are
    somebody's.

    Args:
        interval (int): Steps between two pictures.
        images (int): Most images of a picture.
        attention (bool): Whether the attention is drawn.

    Raises:
        ValueError: If a number is below 1.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 500, images: int = 16, attention: bool = True) -> None:
        for name, value in dict(interval=interval, images=images).items():
            if value < 1:
                raise ValueError(f'SyntheticVisHook: {name} must be at least 1, got {value}.')
        self.interval = interval
        self.images = images
        self.attention = attention
        self.at_work = False

    def before_run(self, runner) -> None:
        """See whether there is a teacher to ask, and an image that may be shown."""
        self.at_work = can_look(runner, 'SyntheticVisHook') and distiller_of(runner).data_free

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Draw, if it is time."""
        step = runner.iter + 1
        if not self.at_work or (runner.iter and step % self.interval):
            return
        with aside():
            images = newest_images(runner, data_batch, self.images)
            teacher = distiller_of(runner).teacher.adapter
            grid = synthetic_grid(teacher, images, class_names(runner), self.attention)
        folder = Path(runner.work_dir) / PICTURES
        folder.mkdir(parents=True, exist_ok=True)
        save_image(folder / f'synthetic_{step:06d}.png', grid)
        runner.visualizer.add_image('synthetic', grid, step=step)
