"""The figure of communication volume over the number of devices."""

from collections.abc import Sequence

from experiments.reporting.figures import COLOURS, STYLE, label_ends, new_figure, save_figure


def draw(path: str, devices: Sequence[int], *, data, hybrid, per_device: int) -> None:
    """Plots the megabytes that each device sends per step, with `per_device` images each, as a PNG; `hybrid` may be
    None."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure()
        axes = figure.subplots()
        ends = []
        for name, values, part in (("data", data, "train"), ("hybrid", hybrid, "eval")):
            if values is not None:
                megabytes = [value / 1e6 for value in values]
                axes.plot(devices, megabytes, color=COLOURS[part])
                ends.append((megabytes[-1], name, part))
        label_ends(axes, ends)
        axes.set_xlabel(f"devices, {per_device} images each")
        axes.set_ylabel("MB sent per device and step")
        axes.set_ylim(bottom=0)
    save_figure(figure, path)
