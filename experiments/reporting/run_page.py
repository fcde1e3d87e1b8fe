"""The report of a finished run of any task: curves of metrics.csv, the task's figures and tables, and the layers."""

import io
import itertools
import pathlib
import types

import numpy as np
from PIL import Image

from experiments.reporting import figures as draw
from experiments.reporting import report
from experiments.setup.experiment import selects
from train.workdir import write_atomically, write_event_images

CAPTIONS = {  # {split}: the evaluated split.
    "loss": "cross-entropy in nats; training: mean since the previous row; {split}: mean over the whole split",
    "accuracy": "accuracy; training: mean since the previous row; {split}: mean over the whole split",
    "learning_rate": "the learning rate at each logged step",
}


def write_png(path: pathlib.Path, image: Image.Image) -> None:
    """Writes the image as a PNG file, atomically."""
    png = io.BytesIO()
    image.save(png, "PNG")
    write_atomically(path, png.getvalue())


def as_image(pixels: np.ndarray) -> Image.Image:
    """Pixels uint8 [H, W, C], gray for one channel."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def stems(files: list[str], used: set[str]) -> list[str]:
    """File names without suffixes. A number is appended to names that are `used`, for example by a file in another
    folder; the names are added to it."""
    found = []
    for file in files:
        stem = pathlib.Path(file).stem
        others = (f"{stem}_{i}" for i in itertools.count(2))
        found.append(next(name for name in itertools.chain([stem], others) if name not in used))
        used.add(found[-1])
    return found


def write_page(
    workdir,
    *,
    layers,
    figures,
    tables,
    headline,
    skip,
    summary,
    command: str,
    captions=CAPTIONS,
    references=types.MappingProxyType({}),
    images_first: bool = False,
    note: str = "",
) -> None:
    """Writes figures/*.png and report.html to the workdir.

    The page shows the summary, with the entries of `headline` first; the curves of metrics.csv except those in `skip`,
    with their `captions` and `references` (as in report.curves); `figures`, each (file name, title, caption, figure),
    before the curves if `images_first`; `tables`; the `layers`; and a `note`.
    """
    path, entries = workdir / "figures", []
    path.mkdir(exist_ok=True)
    split = summary["split"]
    rows = report.read_metrics(workdir / "metrics.csv")
    curves = report.curves(rows, split=split, selects=selects(split), skip=skip, references=references)
    titles = {name: draw.titled(name) for name in curves}
    texts = {name: captions.get(name, f"{titles[name]} over the training steps").format(split=split) for name in curves}
    drawn = [(name, titles[name], texts[name], curves[name]) for name in curves]
    for name, title, caption, figure in (*figures, *drawn) if images_first else (*drawn, *figures):
        draw.save_figure(figure, path / f"{name}.png")
        entries.append((title, caption, path / f"{name}.png"))
    images = {f"figures/{name}": np.asarray(Image.open(path / f"{name}.png").convert("RGB")) for name, *_ in figures}
    write_event_images(workdir, images, step=summary["step"])
    layer_rows = [[x.name, "x".join(map(str, x.shape)), f"{x.parameters:,}", f"{x.multiply_adds:,}"] for x in layers]
    notes = ["The same command with the same --workdir resumes an interrupted run.", note]
    if "stopped_early" in summary:
        notes.append(f"The run stopped early: the score on {split} did not improve any more (--patience).")
    # If test is also scored, the other scores are prefixed with their split.
    shown = {f"{split}_{key}" if f"test_{key}" in summary else key: summary[key] for key in headline if key in summary}
    values = [[key, report.formatted(key, value)] for key, value in summary.items() if not isinstance(value, dict)]
    report.write_report(
        workdir / "report.html",
        title=f"{summary['model']} on {summary['dataset']}",
        summary={key.replace("_per_", "/").replace("_", " "): value for key, value in shown.items()},
        command=command,
        figures=entries,
        tables=[
            *tables,
            ("Layers", ["layer", "output", "parameters", "multiply-adds"], layer_rows),
            ("This run", ["", ""], values),
        ],
        resume_note="\n".join(filter(None, notes)),
    )
