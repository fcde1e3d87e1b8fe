"""The report of a finished classifier."""

import functools

import numpy as np

import models
from experiments.reporting import figures as draw
from experiments.reporting import run_page
from experiments.setup import prediction, preprocessing
from models import summary as layer_summary
from train.averaging import evaluation_weights
from train.messages import say

HEADLINE = ("test_accuracy", "accuracy", "loss", "examples", "step", "parameters", "seconds", "images_per_second")
AVERAGED = "Evaluations and figures use the exponential moving average of the weights (--ema)."
MIXED = "The training loss and accuracy are those of mixed images and labels (--mixup, --cutmix)."
SKIP = ("seconds", "images_per_second", "eval_accuracy_top5")


def weight_images(state, model: str, layer: str, image_shape):
    """The weights of the network's first layer as images [N, H, W, C]: the filters of a convolution, or the weights of
    a dense layer reshaped to its input, which is an image or a single row of it. `layer` is the layer's path."""
    params, batch_stats = evaluation_weights(state)
    if first_filters := models.spec(model).first_filters:
        kernel = first_filters(params, batch_stats)
    else:
        kernel = np.asarray(functools.reduce(lambda tree, name: tree[name], layer.split("/"), params)["kernel"])
    if kernel.ndim == 4:
        return kernel.transpose(3, 0, 1, 2)
    return kernel.T.reshape(kernel.shape[1], -1, *image_shape[1:])


def constant_prediction(confusion, class_names) -> str:
    """A message if images of several classes are all predicted as the same class, else "". `confusion` [true,
    predicted] counts images."""
    predicted = np.flatnonzero(confusion.sum(0))
    if len(predicted) > 1 or np.count_nonzero(confusion.sum(1)) == 1:
        return ""
    return f"every image is predicted as {class_names[predicted[0]]}; a smaller --learning_rate may help"


def write_report(workdir, experiment, *, test, files=None, result, summary, command: str, mixed: bool = False) -> None:
    """Writes the report of a classifier to the workdir: figures/*.png and report.html. `files` are the names of the
    images of `test`, if they are in files; `mixed` states whether it was trained on mixed images."""
    state, names = result.state, experiment.info.class_names
    images, labels, rows = preprocessing.sample_for_report(*test)
    files = None if files is None else [files[row] for row in rows]
    confusion = result.sums["confusion"].astype(int)
    if constant := constant_prediction(confusion, names):
        say(constant)
    probabilities = prediction.probabilities(experiment.task, state, images)
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    among = f"{summary['split']} images"
    among = among if len(images) == summary["examples"] else f"a fixed sample of {len(images)} {among}"
    layers = layer_summary.layers(experiment.model, experiment.input_shape)
    weights = weight_images(state, summary["model"], layers[0].name, experiment.input_shape)
    kind = "filters" if len(layers[0].shape) == 3 else "templates"
    figures = (
        (
            "confusion_matrix",
            "Confusion matrix",
            f"{summary['split']} images; rows: true classes; columns: predicted classes",
            draw.confusion_matrix(confusion, names),
        ),
        (
            "mistakes",
            "Most confident errors",
            f"{among} misclassified with the highest probability",
            draw.mistakes_grid(images, labels, predicted, confidence, names, files=files),
        ),
        (
            "layer1",
            f"Layer-1 {kind}",
            "weights of the first layer, each image scaled by its largest magnitude",
            draw.image_grid(weights[:64], title=f"Layer-1 {kind}", signed=True),
        ),
    )
    tables = [class_table(result.sums, names)]
    run_page.write_page(
        workdir,
        layers=layers,
        figures=figures,
        tables=tables,
        headline=HEADLINE,
        skip=SKIP,
        summary=summary,
        command=command,
        note="\n".join([AVERAGED] * bool(state.average) + [MIXED] * mixed),
    )


def class_table(sums, class_names) -> tuple[str, list[str], list[list[str]]]:
    """The table of recall and precision per class."""
    confusion, rows = sums["confusion"], []
    for i, name in enumerate(class_names):
        true, predicted = confusion[i].sum(), confusion[:, i].sum()
        share = [f"{confusion[i, i] / n:.3f}" if n else "none" for n in (true, predicted)]
        rows.append([name, f"{true:.0f}", *share])
    return "Classes", ["class", "examples", "recall", "precision"], rows
