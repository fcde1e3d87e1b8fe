"""The effect of each flag: one row for every flag of every command, checked by tests/test_flag_effects.py."""

from typing import Any, NamedTuple

STATE = "state"  # The trained parameters differ after two steps.
PROGRAM = "program"  # The traced training step differs; for networks that are too large to train here.
SPEED = "speed"  # The program or batch size differs; results are equal up to rounding.
DATA = "data"  # The data set or its form differs.
METRICS = "metrics"  # Evaluating the initial state gives different metrics.
PLAN = "plan"  # The loop reports, evaluates or saves at different steps.
SHARED = "shared"  # The command's main contains the line `value`, as classify's main does; classify tests the flag.
OUTPUT = "output"  # What the command prints or writes differs.
REFUSAL = "refusal"  # The flag is rejected with the error `why`: it applies to other runs, or needs another flag.


class Row(NamedTuple):
    """Compares the flag set to `value` with its default or its value in `beside`; both runs have the flags `beside`."""

    alters: str
    value: Any
    beside: dict[str, Any] = {}
    why: str = ""
    slow: bool = False


def state(value, /, **beside):
    return Row(STATE, value, beside)


def program(value, /, *, slow=False, **beside):
    return Row(PROGRAM, value, beside, slow=slow)


def refusal(value, why, /, *, slow=False, **beside):
    return Row(REFUSAL, value, beside, why, slow)


def output(value, /, *, slow=False, **beside):
    return Row(OUTPUT, value, beside, slow=slow)


# Names in capitals are placeholders for files and folders that the test creates.
STOPS = {"steps": 4, "eval_every": 1}
PATIENCE = Row(PLAN, 1, {"val_fraction": 0.25, **STOPS})
RESUME = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0}
GROUP = {name: refusal(value, "all three are needed") for name, value in RESUME.items()}
PLANNED = {name: Row(PLAN, value) for name, value in (("eval_every", 2), ("log_every", 1), ("save_every", 1))}
PLANNED["patience"] = PATIENCE
FILES = {
    "workdir": Row(SHARED, "workdir = training.open_workdir(config)"),
    "keep": Row(SHARED, "checkpoints = training.open_checkpoints(workdir, config, experiment, split)"),
    "dry_run": Row(SHARED, "config, workdir, dataset, steps = training.dry_run("),
    "profile_steps": Row(SHARED, "outputs = training.output("),
}
BY_COMMAND = {  # Of classify, tested by starting the command as a user does.
    "workdir": output("OTHER", slow=True),
    "keep": output(1, slow=True, steps=4, save_every=1),
    "dry_run": output(True, slow=True),
    "profile_steps": output("1:2", slow=True),
}
OPTIMIZER = {
    "steps": state(3),
    "epochs": state(0.4, steps=None, epochs=0.2),
    "seed": state(1),
    "batch_size": state(4),
    "learning_rate": state(0.2),
    "optimizer": state("muon"),
    "momentum": state(0.5),
    "nesterov": state(True),
    "weight_decay": state(0.1),
    "clip_norm": state(0.01),
    "schedule": state("cosine"),
    "drops": state((0.5,), steps=3, schedule="step", drops=(0.4,)),
    "drop_factor": state(5.0, steps=3, schedule="step"),
    "warmup_steps": state(1),
    "dtype": state("bfloat16"),
    "devices": Row(SPEED, 2),
}
KERNELS = {
    name: Row(SHARED, "devices = training.start_devices(config, stop)") for name in ("cpu_kernels", "deterministic")
}

TUNED = {"init_from": "RUN", "dataset": "folder", "data_dir": "IMAGES", "batch_size": 4}
IMAGENET = {"image_size": 64, "dataset": "folder", "data_dir": "IMAGES", "batch_size": 4}
CLASSIFY = {
    **BY_COMMAND,
    **PLANNED,
    **OPTIMIZER,
    **GROUP,
    **KERNELS,
    "init_from": Row(METRICS, "RUN", {"dataset": "folder", "data_dir": "IMAGES", "batch_size": 4}, slow=True),
    "eval_split": Row(DATA, "train"),
    "val_fraction": Row(DATA, 0.25),
    "test_fraction": Row(
        DATA, 0.25, {"dataset": "folder", "data_dir": "CLASSES", "val_fraction": 0.25, "batch_size": 4}
    ),
    "dry_run_data": Row(DATA, True, {"dry_run": True}, slow=True),
    "parameter_groups": program("author", model="cuda_convnet", hidden=None, dataset="cifar10", slow=True),
    "data_dir": Row(DATA, "OTHER_IMAGES", {"dataset": "folder", "data_dir": "IMAGES", "batch_size": 4}),
    "sync_bn": program(False, model="cnn", hidden=None, devices=2, slow=True),
    "model": state("perceptron", hidden=None),
    "hidden": state((4,)),
    "activation": state("tanh"),
    "slope": state(0.5, activation="leaky_relu"),
    "depth": program(5, model="densenet", hidden=None, blocks=2, depth=7, slow=True),
    "blocks": program(2, model="densenet", hidden=None, blocks=1, depth=5, slow=True),
    "growth_rate": program(3, model="densenet", hidden=None, blocks=1, depth=3, slow=True),
    "bottleneck": program(True, model="densenet", hidden=None, blocks=1, depth=4),
    "compression": program(0.5, model="densenet", hidden=None, blocks=2, depth=5, slow=True),
    "dropout": state(0.5),
    "dropout_after": program(True, model="alexnet_owt", hidden=None, **IMAGENET, slow=True),
    "local_response_norm": program(True, model="alexnet_owt", hidden=None, **IMAGENET, slow=True),
    "v1_5": program(True, model="resnet50", hidden=None, **IMAGENET, slow=True),
    "dataset": Row(DATA, "cifar10"),
    "image_size": Row(DATA, 8, {"dataset": "folder", "data_dir": "IMAGES", "batch_size": 4}),
    "fit": Row(METRICS, "pad", {"dataset": "folder", "data_dir": "IMAGES", "batch_size": 4, "image_size": 8}),
    "train_batches": Row(DATA, "1-4", {"dataset": "cifar10"}),
    "positive": Row(DATA, "3"),
    "negative": Row(DATA, "8", {"positive": "3"}),
    "skip_corrupt": Row(DATA, True, {"dataset": "folder", "data_dir": "CORRUPT", "batch_size": 4}),
    "augment": state("digits"),
    "shift": state(1, augment="flip_shift"),
    "shift_mode": state("reflect", augment="flip_shift"),
    "cutout": state(8, augment="flip_shift"),
    "alternate_flip": state(True, augment="flip_shift"),
    "colour_noise": state(0.5, dataset="cifar10"),
    "mixup": state(0.5),
    "cutmix": state(0.5),
    "tta": Row(METRICS, "flip"),
    "label_smoothing": state(0.1),
    "ema": program(0.5),
    "early_size": program(24, model="cnn", hidden=None, slow=True),
    "early_share": program(1.0, model="cnn", hidden=None, early_size=24, slow=True),
    "gradients": Row(SPEED, "backpropagation"),
    "accumulate": Row(SPEED, 2),
    "remat": Row(SPEED, True),
    "parallelism": program("hybrid", model="vgg11", hidden=None, **IMAGENET, slow=True),
    "freeze": program("backbone", **TUNED, slow=True),
    "backbone_rate": program(0.5, **TUNED, slow=True),
    "fc_passes": program(2, model="vgg11", hidden=None, parallelism="hybrid", **IMAGENET, slow=True),
    "fc_update": program(
        "each_pass", model="vgg11", hidden=None, parallelism="hybrid", fc_passes=2, **IMAGENET
    )._replace(slow=True),
}
AS_PROGRAM = {name: row._replace(alters=PROGRAM, slow=True) for name, row in OPTIMIZER.items()}
SEGMENT = {
    **FILES,
    **PLANNED,
    **AS_PROGRAM,
    **GROUP,
    **KERNELS,
    "seed": Row(METRICS, 1, slow=True),  # The images of --dry_run_data do not depend on the seed.
    "optimizer": program("sgd", slow=True),
    "momentum": program(0.5, slow=True, optimizer="sgd"),
    "nesterov": program(True, slow=True, optimizer="sgd"),
    "warmup_steps": program(1, slow=True, schedule="constant"),
    "devices": program(2, slow=True),
    "init_from": refusal("RUN", "has --model=mlp, this run --model=segnet_small"),
    "eval_split": Row(DATA, "test"),
    "val_fraction": refusal(0.25, "--val_fraction=0.25: generated already has a split val"),
    "patience": Row(PLAN, 1, STOPS),
    "test_fraction": refusal(0.25, "--test_fraction=0.25: generated already has a split test"),
    "dry_run_data": refusal(
        True, "--dry_run_data is not supported", dataset="digit_scenes", image_size=None, dry_run_data=False
    ),
    "parameter_groups": program("author", model="segnet_basic", slow=True),
    "data_dir": refusal("D", "is not supported by --dataset=digit_scenes", dataset="digit_scenes", image_size=None),
    "sync_bn": program(False, devices=2, batch_size=4, slow=True),
    "model": program("segnet_basic", slow=True),
    "decoder": program("bilinear", slow=True),
    "dataset": refusal("digit_scenes", "--image_size=16x20 is not supported by --dataset=digit_scenes"),
    "image_size": Row(DATA, "12x16"),
    "crop": program("12x16", slow=True),
    "flip": program(False, slow=True),
    "class_weights": program("none", slow=True),
    "exact_batch_norm": Row(METRICS, True, slow=True),
    "freeze": refusal("backbone", "--freeze=backbone needs --init_from=WORKDIR"),  # Tested in test_fine_tuning.py.
    "backbone_rate": refusal(0.5, "--backbone_rate=0.5 needs --init_from=WORKDIR"),
}
GENERATE = {
    **FILES,
    **PLANNED,
    **AS_PROGRAM,
    **GROUP,
    **KERNELS,
    "optimizer": program("muon", slow=True, momentum=0.5),
    "momentum": program(0.9, slow=True),
    "nesterov": program(True, slow=True, optimizer="sgd"),
    "devices": program(2, slow=True),
    "init_from": refusal("RUN", "has --model=mlp, this run --model=dcgan"),
    "eval_split": refusal("train", "samples are compared with images not used for training"),
    "val_fraction": Row(DATA, 0.25),
    "test_fraction": Row(DATA, 0.25, {"dataset": "folder", "data_dir": "CLASSES", "val_fraction": 0.25}),
    "dry_run_data": Row(DATA, True, {"dry_run": True}),
    "parameter_groups": refusal("author", "--parameter_groups=author is not supported by --model=dcgan"),
    "data_dir": Row(DATA, "OTHER_IMAGES", {"dataset": "folder", "data_dir": "IMAGES"}),
    "sync_bn": program(False, slow=True, devices=2, batch_size=4),
    "model": refusal("mlp", "must be one of dcgan"),
    "dataset": Row(DATA, "cifar10"),
    "image_size": Row(DATA, 64, {"dataset": "folder", "data_dir": "IMAGES"}),
    "skip_corrupt": Row(DATA, True, {"dataset": "folder", "data_dir": "CORRUPT"}),
    "authors": program(True, slow=True),
    "conditional": program(True, slow=True),
    "ema": program(0.5, slow=True),
}
RECONSTRUCT = {
    **FILES,
    **PLANNED,
    **AS_PROGRAM,
    **GROUP,
    **KERNELS,
    "schedule": program("constant", slow=True),
    "drops": program((0.5,), slow=True, steps=3, schedule="step", drops=(0.4,)),
    "drop_factor": program(5.0, slow=True, steps=3, schedule="step"),
    "nesterov": program(True, slow=True, optimizer="sgd"),
    "devices": program(2, slow=True),
    "init_from": refusal("RUN", "has --model=mlp, this run --model=autoencoder"),
    "eval_split": Row(DATA, "train"),
    "val_fraction": Row(DATA, 0.25),
    "test_fraction": Row(DATA, 0.25, {"dataset": "folder", "data_dir": "CLASSES", "val_fraction": 0.25}),
    "dry_run_data": Row(DATA, True, {"dry_run": True}, slow=True),
    "parameter_groups": refusal("author", "--parameter_groups=author is not supported by --model=autoencoder"),
    "data_dir": Row(DATA, "OTHER_IMAGES", {"dataset": "folder", "data_dir": "IMAGES"}),
    "dataset": Row(DATA, "cifar10"),
    "skip_corrupt": Row(DATA, True, {"dataset": "folder", "data_dir": "CORRUPT"}),
    "model": program("sparse", hidden=None),
    "code": program(3),
    "hidden": program((5,)),
    "noise": program(0.25, model="denoising"),
    "penalty": program(0.5, model="sparse", hidden=None),
}
EVALUATE = {
    "workdir": output("OTHER_RUN"),
    "dataset": refusal("mnist5k", "classes differ"),
    "data_dir": output("OTHER_IMAGES"),
    "split": output("train"),
    "batch_size": Row(SPEED, 2),
    "tta": output("flip"),
    "skip_corrupt": output(True, data_dir="CORRUPT"),
    "checkpoint": output("best"),
}
PREDICT = {
    "workdir": output("OTHER_RUN"),
    "top": output(2),
    "samples": refusal(3, "--samples=3 is supported only for runs of generate"),
    "seed": refusal(1, "--seed=1 is supported only for runs of generate"),
    "out": refusal("OTHER", "is supported only for runs of generate"),
    "checkpoint": output("best"),
    "invert": output(True),
}
SAMPLE = {  # predict with a run of generate.
    "workdir": output("OTHER_GENERATOR", slow=True),
    "top": refusal(2, "--top is supported only for runs of classify", slow=True),
    "samples": output(3, slow=True),
    "seed": output(1, slow=True),
    "out": output("OTHER", slow=True),
    "checkpoint": output("best", slow=True),
    "invert": refusal(True, "--invert is not supported for runs of generate", slow=True),
}
REPRODUCE = {
    "run": output("OTHER_FINISHED"),
    "workdir": output("OTHER"),
    "data_dir": output("OTHER_IMAGES"),
}
FILTERS = {
    "workdir": output("OTHER_RUN"),
    "layer": refusal(2, "--layer=2: mlp has no convolution"),
    "checkpoint": output("best"),
}
EXPORT = {
    "workdir": output("OTHER_RUN", slow=True),
    "format": output("safetensors", slow=True),
    "out": output("OTHER", slow=True),
    "names": refusal("torchvision", "--names=torchvision has no effect with --format=stablehlo"),
    "checkpoint": output("best", slow=True),
}
PREPARE = {
    "dataset": refusal("camvid", "--split and --shards are supported only by --dataset=folder", split="val"),
    "source": output("OTHER_ARCHIVE"),
    "data_dir": output("OTHER"),
    "split": output("val"),
    "shards": output("OTHER"),
}
SUMMARY = {
    "model": output("perceptron"),
    "hidden": output((4,)),
    "activation": refusal("tanh", "--activation=tanh has no effect on the layers that have weights"),
    "slope": refusal(0.5, "has no effect on the layers", activation="leaky_relu"),
    "depth": output(5, model="densenet", blocks=2, depth=7),
    "blocks": output(2, model="densenet", blocks=1, depth=5),
    "growth_rate": output(3, model="densenet", blocks=1, depth=3),
    "bottleneck": output(True, model="densenet", blocks=1, depth=4),
    "compression": output(0.5, model="densenet", blocks=2, depth=5),
    "dropout": refusal(0.5, "--dropout=0.5 has no effect on the layers"),
    "dropout_after": refusal(True, "--dropout_after=True has no effect on the layers", model="alexnet_owt"),
    "local_response_norm": refusal(True, "has no effect on the layers", model="alexnet_owt"),
    "v1_5": output(True, model="resnet50", slow=True),
    "image_size": output("20"),
    "channels": output(3),
    "num_classes": output(7),
    "json": output(True),
    "parallelism": output("hybrid", model="vgg11", devices=16, batch_size=32, parallelism="data"),
    "devices": output(32, parallelism="data", devices=16, batch_size=32, json=True),
    "batch_size": output(64, model="vgg11", parallelism="hybrid", devices=16, batch_size=32),
    "mesh": output("2x8", model="vgg11", parallelism="hybrid", devices=16, batch_size=32),
    "figure": output("FIGURE", parallelism="data", devices=16, batch_size=32),
}
SWEEP = {
    "workdir": output("OTHER"),
    "grid": output("seed=0..2"),
    "print_commands": output(False),
}
LECTURE = {
    "workdir": output("OTHER"),
    "use": refusal(("",), "must be a comma-separated list of workdirs"),
    "only": refusal(("nosuch",), "--only=nosuch: must be one of perceptron"),
}
IMPORT_WEIGHTS = {
    "workdir": output("OTHER", slow=True),
    "model": refusal("vgg11", "does not fit --model=vgg11", slow=True),
    "v1_5": refusal(True, "--v1_5 is not supported by --model=densenet121", slow=True),
    "dataset": output("tfds:pictures", slow=True),
    "data_dir": output("TEN_CLASSES", slow=True),
    "image_size": output(64, slow=True),
    "dtype": output("bfloat16", slow=True),
    "weights": output("OTHER_WEIGHTS", slow=True),
}
# For each flag of a topic, a small value and a different one.
TOPICS = {
    "perceptron": {"seeds": (1, 2), "steps": (5, 6), "points": (8, 9), "hidden": (2, 3)},
    "activations": {},
    "backpropagation": {"seeds": (1, 2), "steps": (1, 2)},
    "convolution": {"seeds": (1, 2), "steps": (1, 2)},
    "pooling": {"seeds": (1, 2), "digits": (5, 6)},
    "softmax": {"seeds": (1, 2), "steps": (1, 2)},
    "vanishing_gradient": {"seeds": (1, 2), "steps": (1, 2), "hidden_layers": (2, 3)},
    "initialization": {"seeds": (1, 2), "steps": (1, 2), "width": (8, 9), "depths": ("4", "5")},
    "dropout": {"seeds": (1, 2), "steps": (2, 3), "hidden": (36, 37), "rate": (0.5, 0.4)},
    "plain_vs_residual": {
        "seeds": (1, 2),
        "steps": (20, 21),
        "maps": (1, 2),
        "pool": (4, 3),
        "dataset": ("mnist5k", "cifar10"),
    },
    "abstraction": {"seeds": (1, 2), "steps": (1, 20), "signal_steps": (1, 2)},
    "systems": {},
}
# Flags that would have no effect: each is rejected with this error.
REFUSED = (
    ("classify", {"schedule": "step", "drops": ()}, "--schedule=step needs --drops"),
    ("classify", {"schedule": "step", "drops": (0.5, 0.9)}, "--drops=0.9 has no effect: no steps remain after it"),
    ("classify", {"sync_bn": False}, "--nosync_bn has no effect on one device"),
    (
        "classify",
        {"sync_bn": False, "devices": 2},
        "--nosync_bn has no effect with --model=mlp, which has no batch norm",
    ),
    ("classify", {"augment": "flip_shift", "shift": 0, "shift_mode": "reflect"}, "no effect with --shift=0"),
    ("classify", {"early_size": 28}, "--early_size=28 has no effect on images of 28 pixels"),
    (
        "classify",
        {"early_size": 14, "early_share": 0.1},
        "--early_share=0.1 has no effect: it is less than half a step",
    ),
    ("classify", {"parallelism": "hybrid", "fc_update": "each_pass"}, "needs --fc_passes greater than 1"),
    (
        "classify",
        {"parallelism": "hybrid", "fc_update": "each_pass", "fc_passes": 2, "optimizer": "adam"},
        "--optimizer=adam is not supported by --fc_update=each_pass; must be sgd",
    ),
    ("classify", {"hidden": (), "dropout": 0.5}, "--dropout=0.5 has no effect without hidden layers"),
    ("classify", {"hidden": (), "activation": "tanh"}, "--activation=tanh has no effect without hidden layers"),
    ("classify", {"blocks": 1, "compression": 0.5}, "--compression=0.5 has no effect with --blocks=1"),
    ("classify", {"freeze": "backbone"}, "--freeze=backbone needs --init_from=WORKDIR"),
    ("classify", {"backbone_rate": 0.5}, "--backbone_rate=0.5 needs --init_from=WORKDIR"),
    (
        "classify",
        {"init_from": "RUN", "freeze": "backbone", "backbone_rate": 0.5},
        "--backbone_rate=0.5 has no effect with --freeze=backbone",
    ),
    ("classify", {"dropout_after": True, "dropout": 0.0}, "--dropout_after has no effect with --dropout=0"),
    (
        "classify",
        {"skip_corrupt": True},
        "--skip_corrupt is supported by --dataset=folder and tfds:NAME, not by mnist5k",
    ),
    (
        "generate",
        {"skip_corrupt": True},
        "--skip_corrupt is supported by --dataset=folder and tfds:NAME, not by mnist5k",
    ),
    ("segment", {"weight_decay": 0.1, "sync_bn": False}, "--nosync_bn has no effect on one device"),
    ("classify", {"profile_steps": "1:1"}, "--profile_steps=1:1: must be A:B with 0 <= A < B, such as 100:103"),
    ("segment", {"profile_steps": "1:3"}, "--profile_steps=1:3: must be at most 2, the steps of the run"),
    ("prepare", {"source": None, "shards": "S", "split": "val"}, "--split=val needs --source=ARCHIVE"),
    ("sweep", {"grid": "model=mlp,cnn"}, "--model after the -- has no effect: --grid sets its value in each run"),
    ("reconstruct", {"noise": 0.1}, "--noise=0.1 has no effect with --model=autoencoder, only with denoising"),
    ("reconstruct", {"penalty": 0.1}, "--penalty=0.1 has no effect with --model=autoencoder, only with sparse"),
    ("reconstruct", {"model": "sparse"}, "--hidden is not supported by --model=sparse, which has --code"),
    (
        "reconstruct",
        {"skip_corrupt": True},
        "--skip_corrupt is supported by --dataset=folder and tfds:NAME, not by mnist5k",
    ),
    ("summary", {"model": "sparse", "hidden": (4,)}, "--hidden is not supported by --model=sparse"),
    ("summary", {"model": "autoencoder", "num_classes": 7}, "--num_classes=7 has no effect with --model=autoencoder"),
    ("summary", {"model": "dcgan", "hidden": (4,)}, "--hidden is not supported by --model=dcgan"),
    ("summary", {"model": "dcgan", "num_classes": 7}, "--num_classes=7 has no effect with --model=dcgan"),
    ("classify", {"patience": 1, "val_fraction": 0.25}, "--patience=1 has no effect: the run has 2 evaluations"),
    (
        "reconstruct",
        {"patience": 1},
        "--patience=1 needs a validation split, but the run is evaluated on test; give --val_fraction=0.1",
    ),
)
