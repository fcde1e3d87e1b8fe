"""How each documented command is run by tests/test_documented_commands.py.

The keys are the commands as tests/documented.py finds them. `more` is appended to a command, usually to shorten the
run. `where` maps words of the command to replacements: the name of a path that the fixture `places` creates, or
literal text. W is a new folder unless `where` replaces it.
"""

from typing import NamedTuple

from commands import ROOT


class Run(NamedTuple):
    more: str = ""
    where: dict[str, str] = {}
    slow: bool = True  # False: also part of `make test`.
    cold: bool = False  # Runs in a fresh process with empty caches; each command of experiments/ has one such run.
    fails: str = ""  # The expected error message, if the command cannot succeed in the tests' environment.


class Omitted(NamedTuple):
    reason: str


TINY = "--steps=2 --batch_size=8"
ONE_SEED = {"seed=0..2": "seed=0"}
NO_TORCH = "No module named 'torch'"
PEER = {"PEER": "peer", "torch_step.py": "peer", "PYTHON": "python"}
CAMVID = "--image_size=32x48 --steps=2 --batch_size=2"
FASHION = Run(f"{TINY} --data_dir=FOLDER", ONE_SEED | {"FOLDER": "idx_files"})

COMMANDS: dict[str, Run | Omitted] = {
    # README.md
    "make demo": Run("--dry-run", slow=False),
    "make install": Run("--dry-run", slow=False),
    "make test": Run("--dry-run", slow=False),
    "make test-all": Run("--dry-run", slow=False),
    "make kernels-check": Run("--dry-run", slow=False),
    "classify --workdir=W --model=mlp --steps=500": Run("--steps=2", cold=True),
    "classify --workdir=W --model=cnn --epochs=20 --batch_size=32 --test_fraction=0.2 --dataset=folder "
    "--data_dir=D": Run(f"{TINY} --image_size=16", {"D": "photos"}),
    "classify --flagfile=experiments/recipes/dcnn.flags --data_dir=D --workdir=W": Run(TINY, {"D": "images"}),
    "segment --workdir=W": Run(TINY, cold=True),
    "segment --flagfile=experiments/recipes/segnet_basic.flags --data_dir=D --workdir=W": Run(CAMVID, {"D": "camvid"}),
    "generate --workdir=W": Run("--dry_run", cold=True),
    "reconstruct --workdir=W": Run("--steps=2", cold=True),
    "prepare --dataset=cifar10 [--source=ARCHIVE]": Run("--data_dir=W", {"ARCHIVE": "cifar10_archive"}),
    "prepare --dataset=folder --source=ILSVRC2012_img_train.tar --data_dir=D": Run(
        where={"ILSVRC2012_img_train.tar": "image_archive", "D": "new"}, slow=False
    ),
    "prepare --dataset=camvid --source=S --data_dir=D": Run(where={"S": "camvid", "D": "new"}, slow=False),
    "import_weights --model=resnet18 --weights=FILE --workdir=W [--data_dir=D]": Run(
        where={"FILE": "resnet18_weights", "D": "images"}, cold=True
    ),
    "evaluate --workdir=W [--split=test]": Run(where={"W": "classifier"}, cold=True),
    # The original run was made in the tests' environment, without XLA's optimizations.
    "reproduce --run=W --workdir=NEW": Run(
        where={"W": "classifier", "NEW": "new"},
        cold=True,
        fails="variable JAX_DISABLE_MOST_OPTIMIZATIONS: 1 (run), none (here)",
    ),
    "predict --workdir=W image.png ... [--top=3]": Run(where={"W": "classifier", "image.png": "image"}, cold=True),
    "predict --workdir=W --samples=N [--seed=S] [--out=FOLDER]": Run(
        where={"W": "generator", "N": "3", "S": "1", "FOLDER": "new"}
    ),
    "filters --workdir=W [--layer=K]": Run(where={"W": "classifier", "K": "2"}, cold=True),
    "export --workdir=W --format=stablehlo --out=F": Run(where={"W": "classifier", "F": "file"}, cold=True),
    "lecture --workdir=W": Run("--only=activations", cold=True),
    "lecture.perceptron --workdir=W": Run("--seeds=1 --steps=20 --points=20", cold=True),
    "lecture.activations --workdir=W": Run(cold=True),
    "lecture.backpropagation --workdir=W": Run("--seeds=1 --steps=2", cold=True),
    "lecture.convolution --workdir=W": Run("--seeds=1 --steps=2", cold=True),
    "lecture.pooling --workdir=W": Run("--seeds=1 --digits=20", cold=True),
    "lecture.vanishing_gradient --workdir=W": Run("--seeds=1 --steps=2 --hidden_layers=2", cold=True),
    "lecture.initialization --workdir=W": Run("--seeds=1 --steps=2 --width=16 --depths=4", cold=True),
    "lecture.dropout --workdir=W": Run("--seeds=1 --steps=2 --hidden=36", cold=True),
    "lecture.plain_vs_residual --workdir=W": Run("--seeds=1 --steps=20 --maps=1 --dataset=mnist5k", cold=True),
    "lecture.abstraction --workdir=W": Run("--seeds=1 --steps=2 --signal_steps=2", cold=True),
    "lecture.systems --workdir=W": Run(cold=True),
    "lecture.zoo --workdir=W": Run("--only=markov_chain", cold=True),
    "classify --gradients=backpropagation": Run("--workdir=W --model=mlp --steps=2"),
    "summary --model=cnn --image_size=28 [--json]": Run(slow=False),
    "summary --model=alexnet_owt --parallelism=hybrid --devices=8 --batch_size=1024": Run(
        "--json --figure=W/F.png", cold=True
    ),
    'sweep --workdir=W --grid="learning_rate=0.1,0.01 seed=0..4" -- --model=mlp': Run(
        "--steps=2", {"seed=0..4": "seed=0"}
    ),
    "segment --dataset=camvid --model=segnet --init_from=V": Run(
        f"--workdir=W --data_dir=D {CAMVID}", {"V": "vgg16", "D": "camvid"}
    ),
    'sweep --workdir=W --grid="seed=0..2" -- FLAGS': Run("--steps=2", ONE_SEED | {"FLAGS": "--model=perceptron"}),
    'sweep --workdir=W --grid="seed=0..2" -- --model=perceptron --learning_rate=0.02 COMMON': Run(
        "--epochs=0.1", ONE_SEED | {"COMMON": "common_flags"}
    ),
    'sweep --workdir=W --grid="seed=0..2" -- --model=logistic --positive=3 --negative=8 --learning_rate=0.02 COMMON': (
        Run("--epochs=0.1", ONE_SEED | {"COMMON": "common_flags"})
    ),
    'sweep --workdir=W --grid="seed=0..2" -- --model=mlp --learning_rate=0.05 --augment=digits --weight_decay=0.0005 '
    "COMMON": Run("--epochs=0.1", ONE_SEED | {"COMMON": "common_flags"}),
    'sweep --workdir=W --grid="seed=0..2" -- --model=lenet --learning_rate=0.05 --augment=digits --weight_decay=0.0005 '
    "COMMON": Run("--epochs=0.1", ONE_SEED | {"COMMON": "common_flags"}),
    'sweep --workdir=W --grid="seed=0..2" -- --flagfile=experiments/recipes/demo.flags': Run("--steps=2", ONE_SEED),
    'sweep --workdir=W --grid="ema=0,0.99 seed=0..2" -- --model=mlp --learning_rate=0.05 --augment=digits '
    "--weight_decay=0.0005 --nesterov --epochs=16 --batch_size=64": Run(
        "--epochs=0.1", {"ema=0,0.99 seed=0..2": "ema=0.99"}
    ),
    'sweep --workdir=W --grid="mixup=0,0.2 ema=0,0.99 seed=0..2" -- --model=mlp --learning_rate=0.05 --augment=digits '
    "--weight_decay=0.0005 COMMON": Run(
        "--epochs=0.1", {"mixup=0,0.2 ema=0,0.99 seed=0..2": "mixup=0.2", "COMMON": "common_flags"}
    ),
    "benchmarks.loop": Omitted("takes minutes on an idle machine; benchmarks.loop is tested with options below"),
    'sweep --workdir=W --grid="seed=0..2" -- --flagfile=experiments/recipes/dcnn.flags --data_dir=D': Run(
        TINY, ONE_SEED | {"D": "images"}
    ),
    "classify --flagfile=experiments/recipes/dcnn_wide.flags --data_dir=D --workdir=W": Run(TINY, {"D": "images"}),
    "classify --flagfile=experiments/recipes/dcnn_wide.flags --data_dir=D --epochs=60 --learning_rate=0.05 "
    "--eval_every=100000 --workdir=W": Run(TINY, {"D": "images"}),
    'sweep --workdir=W --grid="seed=0..2" -- --flagfile=experiments/recipes/dcnn_wide.flags --data_dir=D': Run(
        TINY, ONE_SEED | {"D": "images"}
    ),
    'sweep --workdir=W --grid="model=cifar_resnet20,cifar_plain20" -- --flagfile=experiments/recipes/'
    "cifar_resnet20.flags --schedule=one_cycle --steps=3000 --eval_every=300 --data_dir=D": Run(TINY, {"D": "images"}),
    "classify --flagfile=experiments/recipes/densenet40.flags --schedule=one_cycle --steps=850 --eval_every=170 "
    "--data_dir=D --workdir=W": Run(f"{TINY} --eval_every=2", {"D": "images"}),
    "filters --workdir=W/seed=0 --layer=3": Run(where={"W/seed=0": "dcnn"}),
    "segment --flagfile=experiments/recipes/segnet_small.flags --data_dir=D --workdir=W": Run(CAMVID, {"D": "camvid"}),
    "generate --workdir=W --dataset=folder --data_dir=D --batch_size=128 --steps=9000 --eval_every=1000": Run(
        "--batch_size=8 --steps=2 --eval_every=2", {"D": "images"}
    ),
    "benchmarks.fit --data_dir=D": Run("--models=vgg11_bn", {"D": "images"}),
    "benchmarks.parity --model=M --salt=S --golden=FILE": Run(where={"M": "resnet18", "S": "s", "FILE": "golden"}),
    "benchmarks.loader --peer_python=PYTHON": Run("--pictures=64 --rounds=1", {"PYTHON": "python"}, fails=NO_TORCH),
    # CONTRIBUTING.md
    "ruff format .": Run("--check --no-cache", slow=False),
    "python -m pytest tests/test_models.py -k NAME": Run(
        "--collect-only --quiet -p no:cacheprovider", {"NAME": "dense"}
    ),
    "summary --model=NAME": Run(where={"NAME": "mlp"}, slow=False),
    "predict --workdir=runs/demo docs/digit.png": Run(where={"runs/demo": "classifier"}),
    "classify --workdir=runs/mlp --model=mlp --steps=500": Run("--steps=2", {"runs/mlp": "new"}),
    "lecture --workdir=runs/lecture": Run("--only=activations", {"runs/lecture": "new"}),
    # docs/results.md
    "lecture.zoo --workdir=W --seeds=3": Run("--only=echo_state"),
    "classify --flagfile=experiments/recipes/RECIPE --workdir=W": Run(TINY, {"RECIPE": "lstm.flags"}),
    "benchmarks.fine_tuning --workdir=W --figure=docs/fine_tuning.png": Run(
        "--model=mlp --steps=2 --seeds=0,1 --counts=10", {"docs/fine_tuning.png": "new"}
    ),
    # docs/fine_tuning.md
    "classify --workdir=W --model=cnn --init_from=V --dataset=folder --data_dir=D --steps=500": Run(
        TINY, {"V": "classifier", "D": "images"}
    ),
    "classify --workdir=W --model=resnet18 --init_from=V --dataset=folder --data_dir=D --freeze=backbone": Run(
        TINY, {"V": "imported_resnet18", "D": "images"}
    ),
    "import_weights --model=resnet18 --weights=FILE --workdir=V": Run(where={"FILE": "resnet18_weights", "V": "new"}),
    # docs/data.md
    "classify --workdir=W --dataset=folder --data_dir=photos --val_fraction=0.1 --test_fraction=0.2 --image_size=64 "
    "--fit=pad --batch_size=16 --epochs=30 --optimizer=adam --learning_rate=0.002": Run(TINY, {"photos": "photos"}),
    "predict --workdir=W new_photos": Run(where={"W": "photo_run", "new_photos": "photos"}),
    "evaluate --workdir=W --data_dir=labeled_photos": Run(where={"W": "photo_run", "labeled_photos": "photos"}),
    "prepare --dataset=folder --data_dir=D --shards=S": Run(where={"D": "images", "S": "new"}, slow=False),
    "prepare --dataset=fashion_mnist": Run("--source=FOLDER --data_dir=W", {"FOLDER": "idx_files"}, slow=False),
    "prepare --dataset=fashion_mnist --source=FOLDER": Run("--data_dir=W", {"FOLDER": "idx_files"}, slow=False),
    "classify --flagfile=experiments/recipes/fashion_dcnn.flags --workdir=W": Run(
        f"{TINY} --data_dir=FOLDER", {"FOLDER": "idx_files"}
    ),
    'sweep --workdir=W --grid="seed=0..2" -- --flagfile=experiments/recipes/fashion_dcnn.flags --tta=flip': FASHION,
    'sweep --workdir=W --grid="seed=0..2" -- --flagfile=experiments/recipes/fashion_dcnn.flags --epochs=46 '
    "--learning_rate=0.06": FASHION,
    "evaluate --workdir=W/seed=0 --tta=flip_shift": Run(where={"W/seed=0": "classifier"}),
    "prepare --dataset=cifar10 --source=FOLDER": Run("--data_dir=W", {"FOLDER": "cifar10_parquet"}),
    # docs/parallelism.md
    "classify --flagfile=experiments/recipes/resnet50.flags --data_dir=D --workdir=W --devices=8 --dtype=bfloat16": Run(
        "--image_size=32 --batch_size=8 --steps=4 --drops=0.5 --learning_rate=1e-4"
        " --devices=2 --dtype=float32 --dry_run",
        {"D": "images"},
    ),
    "benchmarks.accelerator --peak_tflops=P,Q": Run("--models=alexnet_owt --batch_size=2 --steps=1", {"P,Q": "2,1"}),
    # docs/commands.md
    "python docs/commands.py": Run(slow=False),
    # docs/performance.md
    "benchmarks.classifiers --peer=PEER --peer_python=PYTHON --rounds=2 --seconds=2": Run(
        "--models=mlp --seconds=0.01", PEER, fails=NO_TORCH
    ),
    "benchmarks.classifiers --peer=PEER --peer_python=PYTHON --forward_only --batch=1 --rounds=2 --seconds=1": Run(
        "--models=mlp --seconds=0.01", PEER, fails=NO_TORCH
    ),
    "benchmarks.gan --rounds=1 --seconds=2": Run("--models=dcgan32 --seconds=0.01"),
    "python benchmarks/dcgan_in_torch.py --model=M --layout=channels_last --threads=2 --steps=4 --batch_size=64": (
        Omitted("needs torch, which the project does not install")
    ),
    "benchmarks.profile_step --models=resnet20,segnet_basic,mlp,resnet18 --figure=docs/step_profile.png": Run(
        "--models=mlp --batch=16 --seconds=0.01", {"docs/step_profile.png": "new"}
    ),
    "classify --workdir=W --model=mlp --steps=500 --profile_steps=130:133": Run("--steps=2 --profile_steps=0:2"),
    "benchmarks.checkouts --before=FOLDER --models=mlp,resnet20 --turns=20": Run(
        "--models=mlp --batch=8 --seconds=0.001 --turns=2", {"FOLDER": "."}
    ),
    "benchmarks.scaling --figure=docs/scaling.png": Run(
        "--quick --curves=batch --seconds=0.01", {"docs/scaling.png": "new"}
    ),
    # experiments/lecture/lessons
    "lecture.pooling --digits=50 --seeds=2 --workdir=W": Run("--seeds=1 --digits=20"),
    "lecture.convolution --steps=50 --seeds=1 --workdir=W": Run("--steps=2"),
    "summary --model=lenet": Run(slow=False),
    "classify --model=mlp --steps=300 --gradients=backpropagation --workdir=W": Run("--steps=2"),
    "lecture.perceptron --hidden=2 --workdir=W": Run("--seeds=1 --steps=20 --points=20"),
    'sweep --workdir=W --grid="activation=tanh,sigmoid,relu,rectified_tanh" -- --model=mlp --steps=100': Run(
        "--steps=2", {"activation=tanh,sigmoid,relu,rectified_tanh": "activation=rectified_tanh"}
    ),
    "lecture.softmax --steps=10 --seeds=1 --workdir=W": Run("--steps=2"),
    "lecture.abstraction --steps=20 --signal_steps=20 --seeds=1 --workdir=W": Run("--steps=2 --signal_steps=2"),
    "summary --model=cifar_plain56": Run(slow=False),
    "summary --model=cifar_resnet56": Run(slow=False),
    "summary --model=vgg19 --parallelism=hybrid --devices=16 --batch_size=2048": Run(slow=False),
    "lecture.plain_vs_residual --steps=100 --seeds=1 --workdir=W": Run("--steps=20 --maps=1 --dataset=mnist5k"),
    "segment --steps=100 --decoder=indices --workdir=W": Run(TINY),
    "segment --steps=100 --decoder=bilinear --workdir=W2": Run(TINY, {"W2": "new"}),
    "generate --steps=100 --eval_every=100 --workdir=W": Run("--dry_run"),
    "lecture.vanishing_gradient --hidden_layers=3 --steps=200 --seeds=1 --workdir=W": Run("--steps=2"),
    "lecture.initialization --depths=6 --steps=200 --seeds=1 --workdir=W": Run("--steps=2 --width=16"),
    "lecture.dropout --rate=0.9 --steps=500 --seeds=2 --workdir=W": Run("--seeds=1 --steps=2 --hidden=36"),
    # experiments/recipes
    "import_weights --model=vgg16 --weights=FILE --workdir=V": Run(
        "--image_size=32", {"FILE": "vgg16_weights", "V": "new"}
    ),
    "evaluate --checkpoint=best": Run("--workdir=W", {"W": "classifier"}),
    # Module docstrings
    "import_weights --model=resnet18 --weights=FILE --workdir=W": Run(where={"FILE": "resnet18_weights"}),
    "lecture.perceptron --workdir=W [--steps=300 --points=200 --hidden=8]": Run("--seeds=1 --steps=20 --points=20"),
    "prepare --dataset=cifar10 [--source=ARCHIVE] [--data_dir=FOLDER]": Run(
        where={"ARCHIVE": "cifar10_archive", "FOLDER": "new"}, cold=True
    ),
    "prepare --dataset=fashion_mnist [--source=FOLDER]": Run("--data_dir=W", {"FOLDER": "idx_files"}, slow=False),
    "prepare --dataset=folder --source=ILSVRC2012_img_train.tar --data_dir=FOLDER": Run(
        where={"ILSVRC2012_img_train.tar": "image_archive", "FOLDER": "new"}, slow=False
    ),
    "prepare --dataset=folder --data_dir=FOLDER --shards=STORE": Run(
        where={"FOLDER": "images", "STORE": "new"}, slow=False
    ),
    "prepare --dataset=camvid --source=FOLDER_OR_ARCHIVE --data_dir=FOLDER": Run(
        where={"FOLDER_OR_ARCHIVE": "camvid", "FOLDER": "new"}, slow=False
    ),
    "segment --workdir=W --steps=1000": Run(TINY),
    "reconstruct --workdir=W --model=variational": Run(TINY),
    "lecture.softmax --workdir=W [--steps=200]": Run("--seeds=1 --steps=2", cold=True),
    'sweep --workdir=W --grid="learning_rate=0.1,0.01 seed=0..4" -- --model=mlp --steps=500': Run(
        "--steps=2", {"0.1,0.01": "0.1", "seed=0..4": "seed=0"}, cold=True
    ),
    "benchmarks.accelerator [--peak_tflops=P,Q]": Omitted("the same command as in docs/parallelism.md"),
    "benchmarks.accelerator_table --folder=OUT": Run(where={"OUT": "new"}, fails="contains none of numerics.jsonl"),
    "benchmarks.numerics": Run("--models=resnet18"),
    "PYTHON benchmarks/resnet50_in_torch.py [--batch_size=512] [--steps=30] [--device=cuda]": Omitted(
        "needs torch and torchvision, which the project does not install"
    ),
    "benchmarks.record --peer_python=PYTHON --data_dir=FOLDER [--seeds=0,1]": Run(
        where=PEER | {"FOLDER": "images"}, fails=NO_TORCH
    ),
    "benchmarks.record --peer_python=PYTHON --dataset=fashion_mnist": Run(where=PEER, fails=NO_TORCH),
    "PYTHON benchmarks/record_in_torch.py --data=FILE.npz --seed=0 --epochs=9.9 --threads=2": Omitted(
        "needs torch, which the project does not install"
    ),
    "benchmarks.recompress --out=FOLDER [--quality=75]": Run(
        "--data_dir=SOURCE", {"FOLDER": "new", "SOURCE": "idx_files"}
    ),
    "classify --flagfile=experiments/recipes/fashion_dcnn.flags --data_dir=FOLDER --workdir=W": Run(
        TINY, {"FOLDER": "idx_files"}
    ),
    "benchmarks.classifiers --peer=torch_step.py --peer_python=PYTHON": Run("--models=mlp", PEER, fails=NO_TORCH),
    "PYTHON benchmarks/dcgan_in_torch.py --model=dcgan32 --batch_size=64 --layout=channels_last --threads=2 "
    "--steps=5": Omitted("needs torch, which the project does not install"),
    "benchmarks.fit --data_dir=FOLDER [--models=alexnet_owt,vgg11,...]": Omitted(
        "takes 20 minutes for alexnet_owt, which trains to a target accuracy; benchmarks.fit is tested with vgg11_bn"
    ),
    "benchmarks.gan --peer_python=PYTHON [--rounds=3]": Run("--models=dcgan32", PEER, fails=NO_TORCH),
    "benchmarks.loader --peer_python=PYTHON [--pictures=512] [--rounds=3]": Run(
        "--pictures=64 --rounds=1", {"PYTHON": "python"}, fails=NO_TORCH
    ),
    "benchmarks.loop [--model=cnn] [--batch_size=64] [--steps=300]": Run("--model=mlp --steps=10"),
    "benchmarks.parity --model=resnet34 --salt=parity-1 [--golden=FILE.json]": Run(
        "--model=resnet18", {"FILE.json": "golden"}
    ),
    "benchmarks.profile_step [--models=mlp,resnet20] [--figure=FILE.png]": Run(
        "--models=mlp --batch=16 --seconds=0.01", {"FILE.png": "new"}
    ),
    "benchmarks.checkouts --before=FOLDER": Run("--models=mlp --batch=8 --seconds=0.001 --turns=2", {"FOLDER": "."}),
    "benchmarks.scaling [--curves=depth,width] [--figure=FILE.png] [--quick]": Run(
        "--curves=width --seconds=0.01", {"FILE.png": "new"}
    ),
    "benchmarks.fine_tuning --workdir=W [--figure=FILE.png]": Omitted("the same command as in docs/results.md"),
    "benchmarks.segmentation --peer=torch_step.py --peer_python=PYTHON": Run(where=PEER, fails=NO_TORCH),
    "segment --dataset=masks --data_dir=D --steps=300 --batch_size=8 --workdir=W": Run(
        "--steps=2 --batch_size=2", {"D": "masks"}
    ),
    "predict --workdir=W image.png ...": Run(where={"W": "segmenter", "image.png": "image"}),
}

# Each recipe's header ends with its command.
for path in sorted((ROOT / "experiments/recipes").glob("*.flags")):
    comments = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    command = comments.partition("Command: python -m experiments.")[2]
    COMMANDS.setdefault(command, Omitted("every recipe's flags are checked and its training step is traced elsewhere"))
