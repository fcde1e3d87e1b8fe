"""The report of a finished run of segment, and images of masks."""

import pathlib

import numpy as np
from PIL import Image

from data import camvid, decode
from experiments.reporting import figures as draw
from experiments.reporting import run_page
from experiments.setup import prediction
from experiments.setup.experiment import SegmentationInfo
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
LISTED = 40  # With more classes, the legend of the report's figure lists only the most frequent ones in it.


def palette(info: SegmentationInfo) -> np.ndarray:
    """Colors uint8 [C + 1, 3] of the classes and of void: those of the data set, or CamVid's, or generated ones."""
    colours = np.array(info.class_colours or (camvid.COLOURS if info.class_names == camvid.CLASSES else ()))
    if not len(colours):
        colours = distinct_colours(len(info.class_names))
        if info.class_names[0] == "background":
            colours[0] = 40
    used = set(map(tuple, colours.tolist()))
    greys = (0, 255, 128, *range(1, 255))
    void = next((grey,) * 3 for grey in greys if (grey,) * 3 not in used)
    return np.concatenate([colours, [void]]).astype(np.uint8)


def distinct_colours(count: int) -> np.ndarray:
    """Colors [count, 3], 0 to 255: those of tab20, followed by the colors of a grid that differ most from the previous
    ones, black and white."""
    import matplotlib

    found = (255 * matplotlib.colormaps["tab20"](np.arange(20))[:, :3]).round().astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 32)] * 3), -1).reshape(-1, 3)
    nearest = np.abs(grid[:, None] - np.concatenate([found, [[0] * 3, [255] * 3]])).max(2).min(1)
    while len(found) < count:
        chosen = grid[nearest.argmax()]
        found = np.concatenate([found, [chosen]])
        nearest = np.minimum(nearest, np.abs(grid - chosen).max(1))
    return found[:count]


def overlay(image: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Blends the image [H, W, C] with the class colors of the mask, uint8 [H, W, 3]."""
    return (0.5 * np.broadcast_to(image, (*mask.shape, 3)) + 0.5 * colours[mask]).round().astype(np.uint8)


def write_masks(
    place: pathlib.Path, files: list[str], found: np.ndarray, info: SegmentationInfo, used: set[str]
) -> list[tuple[str, str, str]]:
    """Writes, for each image file, a palette PNG of its predicted classes and an overlay of their colors on the image,
    both in the image's original size, with names that are not in `used`. The indices of the classes in the PNG are
    those of the data set's annotations. Returns rows (file, mask, overlay)."""
    colours, rows = palette(info), []
    values = np.array(info.class_values or range(len(info.class_names)))
    entries = np.zeros((values.max() + 1, 3), np.uint8)
    entries[values] = colours[:-1]
    for file, name, mask in zip(files, run_page.stems(files, used), found, strict=True):
        image = decode.read_image(file, channels=3)
        whole = Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST)
        paths = [place / f"{name}_{kind}.png" for kind in ("mask", "overlay")]
        over = Image.fromarray(overlay(image, np.asarray(whole), colours))
        whole = Image.fromarray(values[np.asarray(whole)].astype(np.uint8))
        whole.putpalette(entries.ravel().tolist())
        for path, drawn in zip(paths, (whole, over), strict=True):
            run_page.write_png(path, drawn)
        rows.append((file, str(paths[0]), str(paths[1])))
    return rows


def write_legend(place: pathlib.Path, info: SegmentationInfo) -> None:
    """Writes the colors of the classes to legend.png."""
    import matplotlib

    with matplotlib.rc_context(draw.STYLE):
        shown = draw.new_figure(height=_legend_height(info.class_names))
        patches = _patches(palette(info), info.class_names, longest=60)
        columns = _legend_columns(info.class_names)
        shown.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=9)
        draw.save_figure(shown, place / "legend.png")


def _legend_columns(names) -> int:
    longest = max(map(len, names))
    return 3 if longest <= 16 else 2 if longest <= 30 else 1


def _legend_height(names) -> float:
    """The height of the legend in inches."""
    return 0.45 + 0.19 * -(-len(names) // _legend_columns(names))


def _patches(colours, names, *, longest: int) -> list:
    """The entries of a legend of the classes; names are truncated to `longest` characters."""
    from matplotlib.patches import Patch

    short = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names]
    return [
        Patch(facecolor=colours[i] / 255, edgecolor="#bbbbbb", linewidth=0.5, label=name)
        for i, name in enumerate(short)
    ]


def figure(images, labels, guesses, info: SegmentationInfo):
    """A figure of images, true classes and predicted classes side by side, with a legend to their right."""
    colours, count, classes = palette(info), len(images), len(info.class_names)
    height, width = images.shape[1:3]
    panel = 1.55
    listed = [*range(classes)]
    if classes > LISTED:
        shown_labels = np.concatenate([labels.ravel(), guesses.ravel()])
        counts = np.bincount(shown_labels, minlength=classes)[:classes]
        frequent = np.argsort(-counts, kind="stable")[:LISTED]
        listed = sorted(frequent[counts[frequent] > 0].tolist())
    listed += [classes] if (labels >= classes).any() else []
    names = [(*info.class_names, "void")[i] for i in listed]
    tall = max(0.4 + count * panel * height / width, 0.3 + 0.19 * len(names))
    shown = draw.new_figure(draw.WIDTH + min(2.6, 0.4 + 0.075 * max(map(len, names))), tall)
    grid = shown.subplots(count, 3, squeeze=False)
    for row, (image, label, guess) in enumerate(zip(images, labels, guesses, strict=True)):
        known = np.minimum(label, classes)
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
    shown.legend(handles=_patches(colours[listed], names, longest=28), loc="outside right upper", fontsize=9)
    return shown


def write_report(workdir, experiment, *, test, result, summary, command: str) -> None:
    """Writes the report of a run of segment to the workdir."""
    import matplotlib

    names, (images, labels) = experiment.info.class_names, test
    rows = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int)
    guesses = prediction.masks(experiment.task, result.state, images[rows])
    with matplotlib.rc_context(draw.STYLE):
        shown = figure(images[rows], labels[rows], guesses, experiment.info)
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
            f"percent of the pixels of each true class (rows) of {summary['split']}, by predicted class (columns)",
            draw.confusion_matrix(confusion, names, percent=True),
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
        images_first=True,
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
