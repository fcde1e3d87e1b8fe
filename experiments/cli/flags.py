"""The common flags, read once into a plain dictionary."""

from typing import Any

from absl import flags

from experiments.cli.app import UsageError as UsageError
from experiments.cli.app import one_line as one_line
from experiments.cli.app import require as require
from experiments.cli.app import run as run
from experiments.cli.compilation_cache import start_cache as start_cache

FLAGS = flags.FLAGS
TTA = ["none", "flip", "ten_view"]
# What may differ when a run goes on: where it runs and what it shows, not what it computes.
FREE = {"workdir", "data_dir", "devices", "keep", "dry_run", "dry_run_data"}
GROUP = ("coordinator_address", "num_processes", "process_id")
FREE |= {*GROUP}
# Free too, unless the dense layers are updated after each pass.
FREE_IF_ACCUMULATED = {"parallelism", "fc_passes"}
# Flags younger than the first runs, with what those did.
LATER: dict[str, Any] = dict.fromkeys(
    ("image_size", "train_batches", "early_size", "dropout_after", "local_response_norm", "v1_5", "blocks")
)
LATER |= {"early_share": 0.5, "parallelism": "data", "fc_passes": 1, "fc_update": "accumulate", "drop_factor": 10.0}
LATER |= {"colour_noise": 0.0, "dtype": "float32", "accumulate": 1, "remat": False, "dry_run_data": False}
LATER |= {"alternate_flip": False, "eval_split": None, "gradients": "autodiff", "skip_corrupt": False}


def define_model_flags() -> None:
    """The flags that choose a network."""
    flags.DEFINE_string(
        "model",
        "cnn",
        "Network: perceptron, logistic, mlp, lenet, cnn, cuda_convnet, densenet, dcnn, dcnn_wide, cifar_resnetN, "
        "cifar_plainN; for ImageNet alexnet_owt, vggN, vggN_bn, plainN, resnetN, densenetN.",
    )
    flags.DEFINE_bool("sync_bn", True, "Batch-norm statistics over the global batch.")
    flags.DEFINE_list("hidden", None, "mlp: sizes of the hidden layers, as 256,128.")
    flags.DEFINE_string("activation", None, "mlp, lenet: tanh, sigmoid, relu, rectified_tanh or leaky_relu.")
    flags.DEFINE_float("slope", None, "Slope of leaky_relu for x < 0.")
    flags.DEFINE_integer("depth", None, "densenet: layers, 3N + 4, or 6N + 4 with --bottleneck; default 40.")
    flags.DEFINE_integer("blocks", None, "densenet: dense blocks; default 3.")
    flags.DEFINE_integer("growth_rate", None, "densenet: maps that each layer adds; default 12.")
    flags.DEFINE_bool("bottleneck", None, "densenet: 1x1 convolutions before the 3x3 ones.")
    flags.DEFINE_float("compression", None, "densenet: share of maps that a transition keeps, in (0, 1]; default 1.")
    flags.DEFINE_float("dropout", None, "Dropout rate in [0, 1).")
    flags.DEFINE_bool("dropout_after", None, "alexnet_owt: dropout behind fc6 and fc7, as its author has it.")
    flags.DEFINE_bool("local_response_norm", None, "alexnet_owt: the author's two normalisation layers.")
    flags.DEFINE_bool("v1_5", None, "resnet50, 101, 152: stride in a block's 3x3 convolution, not in its first 1x1.")


def define_training_flags() -> None:
    """The flags of every training run."""
    flags.DEFINE_string("workdir", None, "Folder of the run; started again in it, the run goes on.")
    flags.DEFINE_string("data_dir", None, "Folder of the data set, SPLIT/CLASS/*.jpg or png, or of the prepared store.")
    flags.DEFINE_integer("batch_size", 128, "Images a step, over all devices.")
    flags.DEFINE_integer("steps", None, "Training steps; or give --epochs.")
    flags.DEFINE_float(
        "epochs", None, "Passes over the training split, if --steps is not given. Default 10; segment 7."
    )
    flags.DEFINE_float("learning_rate", 0.1, "The schedule's highest learning rate.")
    flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam", "muon"], "Optimizer.")
    flags.DEFINE_float("momentum", 0.9, "Momentum of sgd and first moment of adam, in [0, 1).")
    flags.DEFINE_bool("nesterov", False, "Nesterov's momentum of sgd.")
    flags.DEFINE_float("weight_decay", 0.0, "Coupled weight decay, 0 or more.")
    flags.DEFINE_enum("schedule", "constant", ["constant", "step", "cosine", "one_cycle"], "Learning-rate schedule.")
    flags.DEFINE_list("drops", ["0.5", "0.75"], "Schedule step: shares of the run after which the rate drops.")
    flags.DEFINE_float("drop_factor", 10.0, "Schedule step: what the rate is divided by at a drop.")
    flags.DEFINE_enum(
        "parameter_groups",
        "none",
        ["none", "author"],
        "author: rates and decays by leaf as the network's author set them, and alexnet_owt's initial weights.",
    )
    flags.DEFINE_integer("warmup_steps", 0, "Steps of linear warm-up.")
    flags.DEFINE_integer("seed", 0, "Seed of initialisation, order, augmentation and dropout.")
    flags.DEFINE_string("eval_split", None, "Split that the run is scored on. Default: test, else val or validation.")
    flags.DEFINE_integer("eval_every", 0, "Steps between evaluations; 0: ten in a run.")
    flags.DEFINE_integer("log_every", 10, "Steps between rows of metrics.csv.")
    flags.DEFINE_integer("save_every", 0, "Steps between checkpoints; 0: after each evaluation only.")
    flags.DEFINE_integer("keep", 2, "Newest checkpoints kept; the best is kept too.")
    flags.DEFINE_string("init_from", None, "Workdir whose parameters the run starts from.")
    flags.DEFINE_integer("devices", None, "Devices; on a CPU that many are simulated. Default: all accelerators, or 1.")
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "What the network computes in; parameters are float32."
    )
    flags.DEFINE_string(
        "coordinator_address", None, "Several processes: HOST:PORT of the first. Launchers tell it too."
    )
    flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
    flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")
    flags.DEFINE_bool(
        "dry_run", False, "Check all flags at full size, then run two small steps, one evaluation and one save."
    )
    flags.DEFINE_bool("dry_run_data", False, "With --dry_run: generated pictures in the place of the data set.")


def define_run_flags() -> None:
    """The flags of classify."""
    define_model_flags()
    define_training_flags()
    flags.DEFINE_string(
        "dataset",
        "mnist5k",
        "Data set: mnist5k, cifar10, folder, or tfds:NAME[/CONFIG][:VERSION] as tfds prepared it with "
        "--file_format=array_record in --data_dir, by default ~/tensorflow_datasets.",
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "folder, tfds: side in pixels of the network's input, cut out of pictures of any size; default 224 where a "
        "picture has more than 64 pixels a side, else the pictures as they are.",
    )
    flags.DEFINE_string(
        "train_batches", None, "cifar10: files of the archive to train on, as 1-4; the rest become val."
    )
    flags.DEFINE_float("label_smoothing", 0.0, "Share of the target that all classes share, in [0, 1).")
    flags.DEFINE_integer("early_size", None, "Side in pixels that the images of the first steps are shrunk to.")
    flags.DEFINE_float("early_share", 0.5, "Share of the run whose images are shrunk to --early_size.")
    flags.DEFINE_enum(
        "augment",
        "none",
        ["none", "digits", "flip_shift", "crop24", "resized_crop", "crop"],
        "Augmentation. For pictures cut to --image_size: resized_crop takes 8 to 100 % of the area, crop a window out "
        "of a square 8/7 as large; both flip.",
    )
    flags.DEFINE_integer("shift", 4, "flip_shift: largest shift in pixels.")
    flags.DEFINE_enum("shift_mode", "zero", ["zero", "reflect"], "flip_shift: what lies outside the picture.")
    flags.DEFINE_integer("cutout", 0, "flip_shift: side in pixels of the square that is blanked; 0 for none.")
    flags.DEFINE_bool(
        "alternate_flip", False, "flip_shift: mirror pictures in memory every other epoch, not at random."
    )
    flags.DEFINE_float("colour_noise", 0.0, "Spread of the training pictures' colour shifts; Krizhevsky has 0.1.")
    flags.DEFINE_enum("tta", "none", TTA, "Views of each test picture whose probabilities are averaged.")
    define_skip_corrupt()
    flags.DEFINE_enum(
        "parallelism",
        "data",
        ["data", "hybrid"],
        "hybrid: the dense layers of alexnet_owt or vggN are divided over the devices by columns.",
    )
    flags.DEFINE_integer("fc_passes", 1, "hybrid: parts of the batch that the dense layers take one after the other.")
    flags.DEFINE_enum(
        "fc_update",
        "accumulate",
        ["accumulate", "each_pass"],
        "hybrid: update the dense layers once a step, or after each pass; the convolutions' learning rate is then "
        "multiplied by --fc_passes.",
    )
    flags.DEFINE_enum(
        "gradients",
        "autodiff",
        ["autodiff", "backpropagation"],
        "backpropagation: the lecture's equations written out, for perceptron, mlp and lenet.",
    )
    flags.DEFINE_integer("accumulate", 1, "Parts of the batch that a step takes one after the other, to save memory.")
    flags.DEFINE_bool("remat", False, "Save memory: keep products and convolutions alone for the backward pass.")
    flags.DEFINE_string("positive", None, "Binary task: the class that is label 1.")
    flags.DEFINE_string("negative", None, "Binary task: the class that is label 0; default all others.")


def define_skip_corrupt() -> None:
    flags.DEFINE_bool(
        "skip_corrupt", False, "folder, tfds: leave out pictures that can't be decoded instead of stopping."
    )


def define_segment_flags() -> None:
    """The flags of segment."""
    define_training_flags()
    defaults = {"batch_size": 16, "epochs": 7.0, "schedule": "one_cycle", "optimizer": "muon", "learning_rate": 0.03}
    for name, value in defaults.items():
        FLAGS.set_default(name, value)
    flags.DEFINE_enum("model", "segnet_small", ["segnet_small", "segnet_basic", "segnet"], "Network.")
    flags.DEFINE_bool("sync_bn", True, "Batch-norm statistics over the global batch.")
    flags.DEFINE_enum(
        "decoder",
        None,
        ["indices", "bilinear", "transposed", "indices_add"],
        "How decoders upsample: by the encoder's pooling indices (indices_add: and its maps), by interpolation that is "
        "fixed, or learned. Default: indices, segnet_small's indices_add.",
    )
    flags.DEFINE_enum("dataset", "digit_scenes", ["digit_scenes", "camvid"], "Data set.")
    flags.DEFINE_string(
        "image_size", None, "camvid: HEIGHTxWIDTH that all pictures are resized to; default as they are."
    )
    flags.DEFINE_string("crop", None, "camvid: HEIGHTxWIDTH of random crops to train on.")
    flags.DEFINE_bool("flip", True, "camvid: random mirror images.")
    flags.DEFINE_enum(
        "class_weights",
        None,
        ["published", "computed", "none"],
        "Classes' weights in the loss: SegNet's published ones (camvid's default), the median frequency over each "
        "one's own in the training pictures, or none. digit_scenes' default: 0.3 for the background.",
    )
    flags.DEFINE_bool(
        "exact_batch_norm",
        False,
        "Batch statistics over the training pictures before each of the run's evaluations, no running means.",
    )


def define_generate_flags() -> None:
    """The flags of generate."""
    define_training_flags()
    defaults = {"batch_size": 32, "optimizer": "adam", "learning_rate": 0.0002, "momentum": 0.5, "steps": 6000}
    for name, value in defaults.items():
        FLAGS.set_default(name, value)
    flags.DEFINE_enum("model", "dcgan", ["dcgan"], "Networks.")
    flags.DEFINE_string("dataset", "mnist5k", "Data set: mnist5k, cifar10, folder or tfds:NAME.")
    flags.DEFINE_bool("sync_bn", True, "Batch-norm statistics over the global batch.")
    flags.DEFINE_integer(
        "image_size", None, "Side in pixels of the networks' pictures, 32 or 64; default 32 for pictures of up to 32."
    )
    define_skip_corrupt()
    flags.DEFINE_bool("authors", False, "The authors' networks: 5x5 windows, 128 maps, even latent vectors.")
    flags.DEFINE_bool("conditional", False, "Networks that are told each picture's class.")
    flags.DEFINE_float(
        "ema", 0.999, "Share that the average of the generator's weights, which samples, keeps at a step; 0: none."
    )


def values() -> dict:
    """name -> value of this file's flags: the only place where FLAGS is read."""
    found = {flag.name: flag.value for flag in FLAGS.flags_by_module_dict()[__name__]}
    if "epochs" in found and FLAGS["epochs"].present and not FLAGS["steps"].present:
        found["steps"] = None  # A command's own default number of steps is not what was asked for.
    return found


def check_start(config: dict) -> None:
    """Before any device is started: each needs an image of the batch at least; --dry_run_data is for dry runs."""
    devices, batch_size = config["devices"], config["batch_size"]
    if devices is not None and not 1 <= devices <= max(1, batch_size):
        raise UsageError(f"--devices={devices}: accepted are 1 to the batch size, {batch_size}")
    require(not config["dry_run_data"] or config["dry_run"], "--dry_run_data is for --dry_run")


def flagfile(config: dict) -> str:
    """The flags as lines that --flagfile reads again."""
    lines = []
    for name, value in sorted(config.items()):
        if isinstance(value, bool):
            lines.append(f"--{'' if value else 'no'}{name}")
        elif value is not None:
            lines.append(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return "\n".join(lines) + "\n"
