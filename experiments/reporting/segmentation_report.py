"""The report of a finished run of segment, and images of masks."""

import pathlib

import numpy as np
from PIL import Image

from data import decode
from experiments.reporting import figures as draw
from experiments.reporting import run_page
from experiments.setup import prediction
from models import summary as layer_summary
from train.tasks import segmentation

HEADLINE = (
    "test_mean_iou",
    "mean_iou",
    "global_accuracy",
    "class_accuracy",
    "boundary_f1",
    "loss",
    "examples",
    "step",
    "seconds",
)
SKIP = ("seconds", "images_per_second")
SHOWN = 10  # Images in the report.
# CamVid's own colors from Sky to Bicyclist; other data sets use the colors of tab20. Void is black.
CAMVID = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128)),
    *((64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)


def palette(class_names) -> np.ndarray:
    """Colors uint8 [C + 1, 3]: one per class, and black for void."""
    from data import camvid

    if tuple(class_names) == camvid.CLASSES:
        colours = np.array(CAMVID)
    else:
        import matplotlib

        colours = (255 * matplotlib.colormaps["tab20"](np.arange(len(class_names)) % 20)[:, :3]).round()
        if class_names[0] == "background":
            colours[0] = 40
    return np.concatenate([colours, np.zeros((1, 3))]).astype(np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Blends the image [H, W, C] with the class colors of the mask, uint8 [H, W, 3]."""
    return (0.5 * np.broadcast_to(image, (*mask.shape, 3)) + 0.5 * colours[mask]).round().astype(np.uint8)


def write_masks(place: pathlib.Path, files: list[str], found: np.ndarray, class_names) -> list[tuple[str, str, str]]:
    """Writes, for each image file, a palette PNG of its predicted classes and an overlay of their colors on the image,
    both in the image's original size, and legend.png. Returns rows (file, mask, overlay)."""
    colours, rows = palette(class_names), []
    for file, name, mask in zip(files, run_page.stems(files), found, strict=True):
        image = decode.read_image(file, channels=3)
        whole = Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST)
        paths = [place / f"{name}_{kind}.png" for kind in ("mask", "overlay")]
        over = Image.fromarray(overlay(image, np.asarray(whole), colours))
        whole.putpalette(colours[:-1].ravel().tolist())
        for path, drawn in zip(paths, (whole, over), strict=True):
            run_page.write_png(path, drawn)
        rows.append((file, str(paths[0]), str(paths[1])))
    import matplotlib

    with matplotlib.rc_context(draw.STYLE):
        shown = draw.new_figure(height=0.5 + 0.25 * -(-len(class_names) // 3))
        _legend(shown, colours, class_names)
        draw.save_figure(shown, place / "legend.png")
    return rows


def _legend(shown, colours, names) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colours[i] / 255, label=name) for i, name in enumerate(names)]
    shown.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=9)


def figure(images, labels, guesses, class_names):
    """A figure of images, true classes and predicted classes side by side, with a legend."""
    colours, count = palette(class_names), len(images)
    height, width = images.shape[1:3]
    panel = 1.55
    shown = draw.new_figure(height=count * panel * height / width + 1.2)
    grid = shown.subplots(count, 3, squeeze=False)
    for row, (image, label, guess) in enumerate(zip(images, labels, guesses, strict=True)):
        known = np.minimum(label, len(class_names))
        for axes, shown_image, title in zip(
            grid[row],
            (np.broadcast_to(image, (height, width, 3)), colours[known], colours[guess]),
            ("image", "ground truth", "prediction"),
            strict=True,
        ):
            axes.imshow(shown_image)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title)
    _legend(shown, colours, (*class_names, "void") if (labels >= len(class_names)).any() else class_names)
    return shown


def write_report(workdir, experiment, *, test, result, summary, command: str) -> None:
    """Writes the report of a run of segment to the workdir."""
    import matplotlib

    names, (images, labels) = experiment.info.class_names, test
    rows = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int)
    guesses = prediction.masks(experiment.task, result.state, images[rows])
    with matplotlib.rc_context(draw.STYLE):
        shown = figure(images[rows], labels[rows], guesses, names)
    confusion = result.sums["confusion"].astype(int)
    figures = (
        (
            "predictions",
            "Predictions",
            f"{len(rows)} of the {len(images)} {summary['split']} images, evenly spaced",
            shown,
        ),
        (
            "confusion_matrix",
            "Confusion matrix",
            "pixels; rows: true classes; columns: predicted classes",
            draw.confusion_matrix(confusion, names),
        ),
    )
    tables = [class_table(result.sums, names)]
    run_page.write_page(
        workdir,
        layers=layer_summary.layers(experiment.model, experiment.input_shape),
        figures=figures,
        tables=tables,
        headline=HEADLINE,
        skip=SKIP,
        summary=summary,
        command=command,
    )


def class_table(sums, class_names) -> tuple[str, list[str], list[list[str]]]:
    """The table of pixels, recall and intersection over union per class."""
    confusion = sums["confusion"]
    overlap, rows = segmentation.intersection_over_union(confusion), []
    for i, name in enumerate(class_names):
        true = confusion[i].sum()
        recall = f"{confusion[i, i] / true:.3f}" if true else "none"
        shown = "none" if np.isnan(overlap[i]) else f"{overlap[i]:.3f}"
        rows.append([name, f"{true:.0f}", recall, shown])
    return "Classes", ["class", "pixels", "recall", "IoU"], rows
