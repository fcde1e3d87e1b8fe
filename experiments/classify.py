"""Trains and evaluates a classifier: python -m experiments.classify --workdir=W --model=mlp --steps=500"""

import json
import shlex

from experiments import flags
from train.stop import Stop

flags.define_run_flags()


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; classify takes flags alone")
    stop = Stop()
    config = flags.values()
    if not config["workdir"]:
        raise flags.UsageError("--workdir=FOLDER is needed: the run is kept there")
    flags.check_devices(config)
    from train import checkpoint, folder, loop, parallel, processes

    devices, line = parallel.start_devices(config["devices"], group=[config[name] for name in flags.GROUP])
    stop.listen()  # jax.distributed has taken them.
    flags.start_cache()
    import jax

    from data import batches
    from experiments import build, look, records, views

    dataset = processes.together(lambda: build.load_dataset(config))
    about, split = build.describe(dataset, colour_noise=config["colour_noise"]), build.eval_split(dataset)
    (images, labels), (test_images, test_labels) = dataset.splits["train"], dataset.splits[split]
    steps, batch_size = build.check(config, len(labels), devices), config["batch_size"]
    setup = build.setup(config, about, devices=devices, steps=steps)
    build.check_shapes(config, setup)
    home, finished = records.start(config, about=about, dataset=dataset)
    if config["dry_run"]:
        home, finished = records.dry_folder(home), None
    if finished:
        return records.say_finished(finished)
    eval_size = -(-min(max(batch_size, 250), len(test_labels)) // devices) * devices

    # --- The state: this workdir's checkpoint, else --init_from, else a fresh one.
    state = parallel.parallelize(setup.task.init, 1, donate=False)(jax.random.key(config["seed"]))
    example = {"image": jax.ShapeDtypeStruct((batch_size, *about.image_shape), "uint8"), "label": labels[:batch_size]}
    build.check_steps(setup.task, state, batch=example, devices=devices, always=config["dry_run"])
    if config["dry_run"]:  # What runs is small: two images for each device and part of a step.
        steps, batch_size = 2, 2 * devices * config["fc_passes"] * config["accumulate"]
        eval_size, test_images, test_labels = batch_size, test_images[:batch_size], test_labels[:batch_size]
    checkpoints = checkpoint.Checkpoints(
        home.path, keep=config["keep"], best=setup.task.best, report=loop.say, about=about
    )
    restored = processes.together(lambda: checkpoints.restore(state))
    state, record = restored or (records.initial_state(config, build.fit(config, state, images, about)), {})
    state, record = processes.follow(state, record)
    start = int(state.step)
    loop.say(f"{line}; {records.describe(dataset, state)}" + (f"; going on from step {start}" if start else ""))
    records.write_start(home, config, setup, dataset=dataset, state=state, steps=steps, devices=line)

    # --- Train.
    every, part, alternate = config["eval_every"] or max(1, -(-steps // 10)), processes.part(), config["alternate_flip"]
    plan = loop.Plan(steps, every, config["log_every"], config["save_every"])
    metrics = folder.MetricsFile(home.path, records.columns(setup.task), step=min(start, record.get("reported", 0)))
    with records.Progress(start, steps) as progress:
        result = loop.train(
            state,
            task=setup.task,
            record=record,
            plan=plan,
            devices=devices,
            train_batches=lambda step: batches.train_batches(
                images, labels, batch_size=batch_size, seed=config["seed"], start=step, part=part, flip=alternate
            ),
            eval_batches=lambda: batches.eval_batches(test_images, test_labels, batch_size=eval_size, part=part),
            eval_examples=len(test_labels),
            learning_rate=setup.learning_rate,
            checkpoints=checkpoints,
            metrics=metrics,
            stop=stop,
            progress=progress,
        )
    metrics.close()
    if not processes.is_main():
        return 0

    # --- What the run leaves behind.
    summary = records.summary(config, setup, result, split, len(test_labels), str(home.path))
    command = f"python -m experiments.classify {shlex.join(flags.flagfile(config).split(chr(10))[:-1])}"
    test = views.shown(test_images, test_labels)
    look.write_report(home.path, setup, test=test, result=result, summary=summary, command=command)
    records.write_end(home, summary)
    loop.say(f"{'dry run, its folder is removed' if config['dry_run'] else 'done'}: {records.headline(summary)}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    flags.run(main)
