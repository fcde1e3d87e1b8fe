"""Bytes that each device sends per training step and stores, with data and hybrid parallelism; used by `summary`."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.cli.app import require
from models import summary
from train.parallel import communication, data_parallel, hybrid
from train.parallel.devices import axis_of, start_devices
from train.state import State, parameter_count
from train.tasks import classification

COMPILED = 8  # Up to this number of devices the compiled program is analyzed; above, a formula is used.


class Counts:
    """Inputs of the formulas: counts of replicated parameters and batch statistics and of dense-layer parameters, the
    number of input features of the dense layers, and the widths of the hidden dense layers."""

    def __init__(self, model, image_shape):
        variables = summary.variables(model, image_shape)
        params, dense = variables["params"], getattr(model, "CLASSIFIER", ())
        self.statistics = parameter_count(variables.get("batch_stats", {}))
        self.total = parameter_count(params)
        self.dense = {name: params[name] for name in dense}
        self.shared = self.total - parameter_count(self.dense)
        if dense:
            first, *_ = dense
            self.features, self.units = params[first]["kernel"].shape[0], [model.units] * (len(dense) - 1)

    def data(self, devices: int) -> dict[str, int]:
        return {
            "communication_bytes_per_device": round(
                communication.data_parallel_bytes(self.total, self.statistics, devices)
            ),
            "state_bytes_per_device": 4 * (2 * self.total + self.statistics),
        }

    def hybrid(self, local: int, batch_size: int, hosts: int = 1) -> dict[str, int]:
        """Bytes for `batch_size` images on hosts x local devices; the dense layers are sharded within each host."""
        filled = sum(leaf.size // leaf.shape[-1] * -(-leaf.shape[-1] // local) for leaf in jax.tree.leaves(self.dense))
        sent = communication.dense_bytes(
            batch_size=batch_size // hosts, features=self.features, units=self.units, devices=local
        )
        sent += communication.data_parallel_bytes(self.shared, self.statistics, hosts * local)
        sent += communication.ring_bytes("all-reduce", 4 * filled, hosts)
        return {
            "communication_bytes_per_device": round(sent),
            "state_bytes_per_device": 4 * (2 * (self.shared + filled) + self.statistics),
        }


def counted(model, image_shape, *, devices: int, batch_size: int, hybrid_parallel: bool) -> int:
    """Bytes that a device sends per step, counted in the compiled program."""
    axis, optimizer = axis_of(devices), optax.sgd(0.01, momentum=0.9)
    model = model.clone(axis_name=axis)

    def prepare(images, keys=None):
        del keys
        return images.astype(jnp.float32)

    common = {"model": model, "optimizer": optimizer, "axis": axis}
    task = classification.create(
        image_shape=image_shape,
        class_names=tuple(map(str, range(model.num_classes))),
        train_prepare=prepare,
        eval_prepare=prepare,
        **common,
    )
    if hybrid_parallel:
        task = hybrid.parallelized(
            task, prepare=prepare, smoothing=0.0, devices=devices, passes=1, update="accumulate", **common
        )
    state: State = jax.eval_shape(task.shard, jax.eval_shape(task.init, jax.random.key(0)))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *image_shape), "uint8"),
        "label": jax.ShapeDtypeStruct((batch_size,), "int32"),
    }
    text = data_parallel.compiled_text(task.train_step, state, batch=batch, devices=devices, is_sharded=task.is_sharded)
    return round(communication.compiled_bytes(text, devices))


class Plan(NamedTuple):
    """The configuration to analyze."""

    hybrid: bool
    hosts: int
    local: int  # Devices per host.
    batch_size: int
    figure: str | None


def start(model, *, hybrid: bool, devices, batch_size, mesh, figure) -> Plan:
    """Starts the CPU devices for which the program will be compiled. Call it before any tracing, which would start a
    single device. Raises UsageError for inconsistent numbers."""
    hosts = 1
    if mesh is not None:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", mesh)
        require(match is not None and hybrid, f"--mesh={mesh}: must be HOSTSxLOCAL (4x8), with --parallelism=hybrid")
        hosts, local = (int(number) for number in match.groups()) if match else (1, 1)
        require(devices in (None, hosts * local), f"--devices={devices} does not match --mesh={mesh}")
        devices = hosts * local
    require(figure is None or mesh is None, f"--figure={figure} is supported only for a single host, without --mesh")
    require(figure is None or figure.lower().endswith(".png"), f"--figure={figure}: must be a .png file name")
    require(devices is not None and devices > 1, f"--devices={devices}: must be 2 or more with --parallelism")
    require(
        batch_size is not None and batch_size > 0 and batch_size % devices == 0,
        f"--batch_size={batch_size}: must be given, and divisible by {devices} devices",
    )
    require(
        not hybrid or hasattr(model, "CLASSIFIER"),
        "--parallelism=hybrid is supported only by alexnet_owt and vggN, which have hidden dense layers",
    )
    if hosts == 1 and devices <= COMPILED:
        jax.config.update("jax_platforms", "cpu")  # Simulated devices, whatever accelerators exist.
        start_devices(devices)
    return Plan(hybrid, hosts, devices // hosts, batch_size, figure)


def report(model, image_shape, plan: Plan) -> dict:
    """Returns {"data": ..., "hybrid": ...} with the bytes of each. Call `start` first."""
    hybrid, hosts, local, batch_size, figure = plan
    devices = hosts * local
    counts = Counts(model, image_shape)
    found = {"data": counts.data(devices)}
    if hybrid:
        found["hybrid"] = counts.hybrid(local, batch_size, hosts)
    if hosts == 1 and devices <= COMPILED:
        for kind, numbers in found.items():
            numbers["communication_bytes_per_device"] = counted(
                model, image_shape, devices=devices, batch_size=batch_size, hybrid_parallel=kind == "hybrid"
            )
    if figure:
        from experiments.reporting.figures_communication import draw

        per_device = batch_size // devices
        ks = range(2, 41)
        draw(
            figure,
            ks,
            data=[counts.data(k)["communication_bytes_per_device"] for k in ks],
            hybrid=[counts.hybrid(k, k * per_device)["communication_bytes_per_device"] for k in ks] if hybrid else None,
            per_device=per_device,
        )
    return found
