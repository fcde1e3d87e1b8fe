"""Visualizes the features of a network's layers: python -m experiments.filters --workdir=W [--layer=K]

--layer=1 shows the weights of the first layer, each filter normalized to its own range. --layer=K, where K counts the
convolutions in the order of the forward pass, shows the channels with the largest activations on the test images: the
patches that activate each channel most and, beside them, their guided gradients (Springenberg et al. 2015, "Striving
for simplicity"). Here an activation is the output of the convolution itself, before batch norm, pooling or the
activation function.
"""

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.cli import app
from experiments.cli.app import require
from experiments.cli.options import option
from experiments.reporting import figures, figures_filters, report
from train.averaging import evaluation_variables
from train.parallel import data_parallel

UNITS = 16  # Channels shown.
TOP = 9  # Patches shown for each channel.


@dataclasses.dataclass(frozen=True)
class FiltersConfig:
    """Filters"""

    workdir: str = option(None, "Folder of the run.", needed="the folder of the run", path=True)
    layer: int = option(1, "1: weights of the first layer; K: patches for the K-th convolution.", "[1, inf)")
    checkpoint: str = option("latest", "Checkpoint to use.", choices=("latest", "best"))


def outputs(model, variables, images, *, convolve=lambda call, x: call(x)):
    """The outputs [B, h, w, C] of a network's convolutions by name, in the order of the forward pass.

    `convolve(call, x)` can replace a convolution `call` of the input x. Locally connected layers are left out, because
    their weights differ between positions: a channel is not a single feature.
    """
    found = collections.OrderedDict()  # jax keeps the order of an OrderedDict, but sorts the keys of a dict.

    def record(call, arguments, keywords, context):
        if not isinstance(context.module, nn.Conv) or context.method_name != "__call__":
            return call(*arguments, **keywords)
        output = found["/".join(context.module.path)] = convolve(call, *arguments, **keywords)
        return output

    with nn.intercept_methods(record):
        model.apply(variables, images, train=False)
    return found


def receptive_fields(model, variables, input_shape, *, name: str) -> list[np.ndarray]:
    """Receptive fields of a convolution's output: the rows [h, 2] and columns [w, 2] (start, stop) of the input
    [H, W, C] that each output row and column depends on, clipped at the border.

    They are found by setting one row or column of a zero input to one. All kernels are set to ones, so that no terms
    cancel. The output of each convolution is replaced by 1 where it depends on the changed pixels and by 0 elsewhere,
    so that no value overflows or underflows. This is exact for any depth, with pooling and shortcuts.
    """

    def ones_or_zeros(path, leaf):
        return jnp.full(leaf.shape, path[-1].key in ("kernel", "scale", "var", "whitening"), leaf.dtype)

    def differs(call, x):
        return (call((x != x[:1]).astype(x.dtype)) > 0.5).astype(x.dtype)  # Integers up to rounding.

    variables, zeros = jax.tree_util.tree_map_with_path(ones_or_zeros, variables), jnp.zeros(input_shape)

    def reached(image):
        return outputs(model, variables, jnp.stack([zeros, image]), convolve=differs)[name][1].any(-1)

    found = []
    for size, sees in (
        (input_shape[0], lambda i: reached(zeros.at[i].set(1.0)).any(1)),
        (input_shape[1], lambda i: reached(zeros.at[:, i].set(1.0)).any(0)),
    ):
        seen = np.asarray(jax.lax.map(sees, jnp.arange(size)))  # [input, output]
        found.append(np.stack([seen.argmax(0), size - seen[::-1].argmax(0)], axis=1))
    return found


def cut(image, box, *, size, fill: float) -> np.ndarray:
    """Crops ((top, bottom), (left, right)) from an image [H, W, C] and pads the crop to [*size, C]. A crop clipped at
    the border keeps its unclipped position; the pixels beyond the border are `fill`."""
    result = np.full((*size, image.shape[-1]), fill)
    inside = []
    for (start, stop), full in zip(box, size, strict=True):
        offset = full - (stop - start) if start == 0 else 0  # Clipped at the top or left border.
        inside.append(slice(offset, offset + stop - start))
    result[tuple(inside)] = image[tuple(slice(*edges) for edges in box)]
    return result


def peaks(state, batch, *, model, prepare, name: str):
    """Returns (the largest output [B, C] of each channel of a convolution, its flat index [B, C] over h x w)."""
    maps = outputs(model, evaluation_variables(state), prepare(batch["image"]))[name]
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return flat.max(1), flat.argmax(1)


def guided_gradients(state, batch, *, model, prepare, name: str):
    """Returns (the network's input [B, H, W, C], the guided gradient of one convolution output with respect to it, for
    each image).

    batch["unit"] [B] is the flat index of the output in [h, w, C].
    """
    guided = model.clone(guided=True)

    def chosen(inputs):
        maps = outputs(guided, evaluation_variables(state), inputs)[name]
        return jnp.take_along_axis(maps.reshape(maps.shape[0], -1), batch["unit"][:, None], axis=1).sum()

    inputs = prepare(batch["image"])
    return inputs, jax.grad(chosen)(inputs)


def excited_patches(state, images, *, experiment, prepare, name: str):
    """Returns (channels [U], patches [U, T, h, w, C] in 0 .. 1, their guided gradients [U, T, h, w, C]) for uint8
    images [N, H, W, C]: the patches with the largest activations of each channel, at the position of the maximum. The
    channels are those whose T largest activations have the largest mean."""
    from data import batches

    def compiled(step):
        return data_parallel.parallelize(
            functools.partial(step, model=experiment.model, prepare=prepare, name=name), 1, donate=False
        )

    peaks_step, gradients_step = compiled(peaks), compiled(guided_gradients)
    parts = batches.eval_batches(images, np.zeros(len(images), np.int32), batch_size=250)
    found = [jax.device_get(peaks_step(state, {"image": part["image"]})) for part in parts]
    largest, place = (np.concatenate(part)[: len(images)] for part in zip(*found, strict=True))  # [N, C]
    rows = np.argsort(-largest, axis=0, kind="stable")[:TOP]  # [T, C]
    strength = np.take_along_axis(largest, rows, axis=0).mean(0)
    channels = np.argsort(-strength, kind="stable")[:UNITS]
    fields = receptive_fields(experiment.model, evaluation_variables(state), experiment.input_shape, name=name)
    size = [int((field[:, 1] - field[:, 0]).max()) for field in fields]
    patches, gradients = [], []
    for channel in channels:
        chosen = rows[:, channel]
        where = place[chosen, channel]
        unit = (where * largest.shape[1] + channel).astype(np.int32)
        inputs, slopes = jax.device_get(gradients_step(state, {"image": images[chosen], "unit": unit}))
        boxes = [(fields[0][y], fields[1][x]) for y, x in zip(*divmod(where, len(fields[1])), strict=True)]
        pixels = (inputs * np.asarray(experiment.info.std) + np.asarray(experiment.info.mean)) / 255
        patches.append([cut(image, box, size=size, fill=0.5) for image, box in zip(pixels, boxes, strict=True)])
        gradients.append([cut(slope, box, size=size, fill=0.0) for slope, box in zip(slopes, boxes, strict=True)])
    return channels, np.asarray(patches), np.asarray(gradients)


def main(config: FiltersConfig) -> int:
    from experiments.cli.compilation_cache import start_cache
    from experiments.reporting import classification_report, run_page
    from experiments.setup import classification, evaluation_data, preprocessing, saved_run, stored_network
    from experiments.setup.experiment import scoring_split
    from models import summary

    run, layer = saved_run.read(config.workdir), config.layer
    command = saved_run.COMMANDS[run.task]
    require(command == "classify", f"--workdir={config.workdir} contains a run of {command}, not of classify")
    start_cache()
    run = run._replace(config=dataclasses.replace(run.config, tta="none"))  # No test-time augmentation.
    experiment = stored_network.experiment_from_run(run)
    like = jax.eval_shape(experiment.task.init, jax.random.key(0))
    one = jnp.zeros((1, *experiment.input_shape))
    names = list(jax.eval_shape(functools.partial(outputs, experiment.model), evaluation_variables(like), one))
    dense = not names
    names = names or [summary.layers(experiment.model, experiment.input_shape)[0].name]
    known = ", ".join(f"{i} {name}" for i, name in enumerate(names, 1))
    accepted = f"must be between 1 and {len(names)}: {known}"
    accepted = f"{run.config.model} has no convolution; must be 1 ({names[0]})" if dense else accepted
    require(layer <= len(names), f"--layer={layer}: {accepted}")
    name, path = names[layer - 1], run.workdir / f"filters_layer{layer}.png"
    guided = layer == 1 or hasattr(experiment.model, "guided")
    require(guided, f"--layer={layer}: must be 1 for --model={run.config.model}, which has no guided gradients")
    state = stored_network.restore(experiment, run, config.checkpoint)
    if layer == 1:
        filters = classification_report.weight_images(state, run.config.model, name, experiment.input_shape)
        run_page.write_png(path, Image.fromarray(figures_filters.filter_grid(filters)))
        mean = "" if filters.shape[-1] in (1, 3) else ", averaged over the channels"
        print(f"{name}: {len(filters)} filters of {'x'.join(map(str, filters.shape[1:]))}{mean}: {path}")
        return 0
    changed, shape = evaluation_data.for_evaluation(run, dataset=None, data_dir=None, tta=None)
    dataset = classification.load_dataset(changed.config, shape=shape)
    split = scoring_split(dataset)
    prepare = preprocessing.make_prepare(run.config, run.info)[1]
    channels, patches, gradients = excited_patches(
        state, dataset.splits[split][0], experiment=experiment, prepare=prepare, name=name
    )
    what = f"{name}: the {len(channels)} channels with the largest activations on images of the {split} split"
    title = f"{what}; left: patches, right: their guided gradients"
    figure = figures_filters.excitation_grid(patches, gradients, [f"channel {c}" for c in channels], title=title)
    figures.save_figure(figure, path)
    report.add_figure(run.workdir / "report.html", f"Patches for {name}", title, path)
    print(f"{what}, {patches.shape[1]} patches of {patches.shape[2]}x{patches.shape[3]} pixels each: {path}")
    return 0


if __name__ == "__main__":
    app.run(main, FiltersConfig)
