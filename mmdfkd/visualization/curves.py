"""Training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_curves(records: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draw the total loss and its components over iterations.

    Axes are logarithmic where the values span more than a decade.

    Args:
        records (Sequence[Mapping]): One a logged interval: ``iter`` and every key that contains
            ``loss``.
        path (str | Path): PNG file to write.
    """
    # Not pyplot: its global state belongs to whoever calls this.
    figure = Figure(figsize=(10, 4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    keys = list(dict.fromkeys(k for r in records for k in r if 'loss' in k))
    total = [k for k in keys if k.rsplit('.', 1)[-1] == 'loss']
    parts = [k for k in keys if k not in total]
    axes = figure.subplots(1, 2, squeeze=False)[0]
    for axis, names, title in ((axes[0], total, 'total loss'), (axes[1], parts, 'components')):
        values = []
        for name in names:
            points = [(r['iter'], r[name]) for r in records if name in r]
            x, y = zip(*points, strict=True)
            axis.plot(x, y, label=name, linewidth=1.4, marker='.' if len(points) < 3 else None)
            values += y
        if values and min(values) > 0 and max(values) > 10 * min(values):
            axis.set_yscale('log')
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        if len(names) > 1 or axis is axes[1] and names:
            axis.legend(fontsize=8)
    figure.savefig(path)
