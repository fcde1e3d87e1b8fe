"""What a network sees of a picture: in training, in a test, of a file."""

import functools
import math

import numpy as np

from data import augment, decode, image_files, stream
from experiments.cli.flags import require


def in_memory(run: dict) -> bool:
    """Whether the run held its pictures in memory, as they are."""
    return run["flags"]["image_size"] is None and max(run["image_shape"][:2]) <= image_files.LARGEST


def read_picture(file: str, run: dict) -> np.ndarray:
    """The picture file as the run's network saw the test pictures, uint8 [H, W, C]: the middle square of streamed
    pictures, the whole of others, resized. Raises DataError."""
    height, width, channels = run["image_shape"]
    if run.get("task") == "segmentation" or in_memory(run):
        return decode.read_image(file, channels=channels, crop=decode.whole((height, width)))
    size, kind = run["flags"]["image_size"], run["flags"]["augment"]
    return decode.read_image(file, channels=channels, crop=stream.middle(stream.view(size, kind)))


def on_own_data(run: dict, *, dataset: str | None, data_dir: str | None) -> dict:
    """`on_data` with the run's flags. Raises UsageError for another data set than the run's own."""
    made_of = run["flags"]["dataset"]
    require(
        dataset in (None, made_of), f"--dataset={dataset}: the run is of {made_of}, which alone it can be scored on"
    )
    return on_data(run["flags"], dataset=dataset, data_dir=data_dir)


def on_data(config: dict, *, dataset: str | None, data_dir: str | None) -> dict:
    """The flags with another data set or folder, where these are not None; one's folder is not another's."""
    if dataset not in (None, config["dataset"]):
        config = config | {"dataset": dataset, "data_dir": None}
    return config if data_dir is None else config | {"data_dir": data_dir}


def for_evaluation(
    run: dict, *, dataset: str | None, data_dir: str | None, tta: str | None
) -> tuple[dict, tuple | None]:
    """(the run with its flags and image shape, the shape [h, w, channels] that picture files are resized to), to score
    it on the data and with the views given, or where they are None with its own."""
    old = run["flags"]
    config = old | {"tta": tta or old["tta"]}
    if config["tta"] == "ten_view" and not in_memory(run):  # They are cut out of a larger square.
        side = stream.view(old["image_size"], "crop").side
        config, run = config | {"augment": "crop"}, run | {"image_shape": [side, side, run["image_shape"][2]]}
    config = on_data(config, dataset=dataset, data_dir=data_dir)
    if config["dataset"] != old["dataset"]:
        config["train_batches"] = None
    if (config["dataset"], config["data_dir"]) == (old["dataset"], old["data_dir"]):
        return run | {"flags": config}, None
    if in_memory(run):
        return run | {"flags": config}, tuple(run["image_shape"])
    return run | {"flags": config | {"image_size": old["image_size"] or stream.SIZE}}, None


def unnamed(classes: int) -> list[str]:
    """What the classes are called where no folder of pictures gives their names."""
    return [f"{i:04d}" for i in range(classes)]


def shown(images, labels):
    """The test pictures that the report looks for mistakes among: all, or of a stream as many as fit in memory."""
    if not isinstance(images, stream.Stream):
        return images, labels
    rows = stream.sample(len(images), stream.SAMPLE)
    return images[rows], labels[rows]


def prepare(config: dict, about):
    """(train, eval, input shape): train(images, keys) and eval(images) make the network's input from uint8 images."""
    normalize = functools.partial(augment.normalize, mean=about.mean, std=about.std)
    height, width, channels = about.image_shape
    kind, views = config["augment"], config["tta"]
    for name in ("shift", "cutout"):
        require(
            0 <= config[name] < min(height, width), f"--{name}={config[name]}: accepted are 0 to {height - 1} pixels"
        )
    crop = {"crop24": 24, "crop": config["image_size"] or stream.SIZE}.get(kind)
    if crop:
        require(min(height, width) >= crop, f"--augment={kind} needs {crop}x{crop} pixels, not {height}x{width}")
        see = functools.partial(augment.ten_views if views == "ten_view" else augment.center_crop, size=crop)
    else:
        require(
            views != "ten_view",
            "--tta=ten_view is for runs with --augment=crop24 and for pictures of more than 64 pixels a side: with "
            "--augment=crop, or in evaluate",
        )
        see = None

    noise = config["colour_noise"]
    require(0 <= noise < math.inf, f"--colour_noise={noise}: must be 0 or more, and finite")
    require(not noise or (channels == 3 and kind != "digits"), "--colour_noise is for colour pictures")

    def train(images, keys):
        if kind == "digits":
            return normalize(augment.digits(images, keys))
        images = normalize(images)
        if noise:
            images = augment.colour_noise(images, keys, covariance=about.covariance, std=about.std, scale=noise)
        # Normalised before shifts and cutout: the zeros that they bring in are the mean.
        if kind == "flip_shift":
            reflect, flip = config["shift_mode"] == "reflect", not config["alternate_flip"]
            return augment.flip_shift(
                images, keys, shift=config["shift"], reflect=reflect, cutout=config["cutout"], flip=flip
            )
        if kind == "resized_crop":  # The stream has cut and resized: the mirror image is left.
            return augment.flip_shift(images, keys, shift=0)
        return augment.flip_crop(images, keys, size=crop) if crop else images

    def evaluation(images):
        images = see(normalize(images)) if see else normalize(images)
        return augment.flip_views(images) if views == "flip" else images

    return train, evaluation, (crop, crop, channels) if crop else about.image_shape


def early(config: dict, input_shape, steps: int):
    """(steps, (height, width)) of the smaller images that a run begins with."""
    size, share, shortest = config["early_size"], config["early_share"], min(input_shape[:2])
    require(0 < share <= 1, f"--early_share={share}: accepted are values in (0, 1]")
    if size is None:
        return 0, None
    require(0 < size <= shortest, f"--early_size={size}: accepted are 1 to {shortest} pixels")
    return round(share * steps), tuple(round(side * size / shortest) for side in input_shape[:2])
