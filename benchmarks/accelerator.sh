#!/bin/bash
# Checks and measures the project on one GPU, in at most eight minutes:
#
#     bash benchmarks/accelerator.sh OUT [DATA]
#
# Writes OUT/accelerator.json and OUT/accelerator.md: the checks of benchmarks.numerics, the steps of
# benchmarks.accelerator beside PyTorch's ResNet-50, and, with DATA, a training run of dcnn.flags. OUT is a new or an
# empty folder. DATA is CIFAR-10 as small images, DATA/train/CLASS/*.jpg and DATA/test/CLASS/*.jpg. A part that fails or
# exceeds its time leaves the others as they are; the exit status is then 1.
#
# It needs no compiler and no network, only a Python (PYTHON, by default python3) with jax for the GPU and the packages
# that setup.cfg lists. Those that an image for deep learning may lack have no compiled code for the GPU and can be copied
# as wheels: array_record, grain, importlib_resources, latex2mathml, markdown-it-py, mdit-py-plugins, mlxtend,
# tensorboardX, tensorflow-datasets, tqdm, and their dependencies. PyTorch's ResNet-50 is measured if PYTHON has torch
# and torchvision.
#
# PEAKS are the vendor's TFLOP/s in bfloat16 and TensorFloat-32; the default is that of NVIDIA's H100 SXM and H200 (data
# sheets, without sparsity). TINY=1 uses the smallest sizes and no time limits, to test the script on a CPU.
set -u
unset CDPATH
refuse() { echo "error: $1" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] || { echo 'usage: bash benchmarks/accelerator.sh OUT [DATA]' >&2; exit 2; }
python=$(command -v "${PYTHON:-python3}") || refuse "PYTHON=${PYTHON:-python3}: no such command"
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
data=
if [ $# -eq 2 ]; then
    [ -d "$2" ] && data=$(cd -- "$2" && pwd) || refuse "DATA=$2: no such folder"
fi
peaks=${PEAKS:-989.4,494.7}
number='[0-9]+([.][0-9]+)?'
[[ $peaks =~ ^$number,$number$ ]] || refuse "PEAKS=$peaks: must be two numbers, such as 989.4,494.7"
mkdir -p -- "$1" 2>/dev/null && out=$(cd -- "$1" && pwd) || refuse "OUT=$1: can't be created"
[ -z "$(ls -A "$out")" ] && [ -w "$out" ] || refuse "OUT=$1: must be a new or an empty folder"
project=$(cd "$(dirname "$0")/.." && pwd)
cd "$project" || exit 1
numerics=() steps=() torch=() training=()
if [ -n "${TINY:-}" ]; then
    numerics=(--models=resnet18)
    steps=(--models=resnet50,dcgan --dtypes=float32 --batch_size=2 --steps=1)
    torch=(--batch_size=2 --steps=1 --side=32 --device=cpu)
    training=(--steps=2 --batch_size=8)
    peaks=1
fi
status=0

# part NAME SECONDS COMMAND...: the command's standard output is OUT/NAME.jsonl.
part() {
    local name=$1 limit=$2
    shift 2
    [ -z "${TINY:-}" ] || limit=0  # timeout's word for no limit.
    echo "== $name: $*" >&2
    timeout --foreground --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.jsonl" && return
    echo "error: $name failed" >&2
    status=1
}

trap 'exit 130' INT
part numerics 120 "$python" -m benchmarks.numerics "${numerics[@]}"
if [ -n "$data" ]; then
    part training 90 "$python" -m experiments.classify --flagfile=experiments/recipes/dcnn.flags --data_dir="$data" \
        --workdir="$out/dcnn" "${training[@]}"
fi
if "$python" -c 'import torch, torchvision' 2>/dev/null; then
    part peer 40 "$python" benchmarks/resnet50_in_torch.py "${torch[@]}"
fi
part steps $((460 - SECONDS)) "$python" -m benchmarks.accelerator --peak_tflops="$peaks" "${steps[@]}"
"$python" -m benchmarks.accelerator_table --folder="$out" || status=1
exit $status
