"""Trains and evaluates a classifier: python -m experiments.classify --workdir=W --model=mlp --steps=500"""

from experiments.cli import app, options, validation
from experiments.cli.config import ClassifyConfig
from train.signals import Stop


def main(config: ClassifyConfig) -> int:
    validation.check_classify(config)
    stop = Stop()  # Installs signal handlers first: the imports below take seconds.
    from data.dataset import file_names
    from experiments.reporting import classification_report, run_record
    from experiments.setup import classification, source_run, training
    from experiments.setup.experiment import eval_split
    from train import averaging, loop
    from train.parallel import processes

    devices = training.start_devices(config, stop)
    workdir = training.open_workdir(config)

    # --- Data, network, optimizer and task. Invalid configurations are rejected here, before any computation.
    with training.checked_on_all_processes(config, workdir):
        classification.check_model(config.model)
        config, dataset = source_run.load_dataset(config)
        info = classification.dataset_info(config, dataset)
        steps = training.total_steps(config, dataset, devices.number)
        split = eval_split(dataset, config.eval_split)
        experiment = classification.create_experiment(config, info, devices=devices.number, steps=steps)
        source_run.check(config, experiment)
    if summary := training.stored_summary(workdir, config, experiment, dataset, split):
        return run_record.print_complete(summary)

    # --- State: from the newest checkpoint of the workdir, else from --init_from, else random weights.
    new_state = training.initialize(experiment, config, dataset, device_count=devices.number)
    if config.dry_run:
        config, workdir, dataset, steps = training.dry_run(config, workdir, dataset, split, devices.number)
    checkpoints = training.open_checkpoints(workdir, config, experiment, split)
    restored = training.restore(checkpoints, new_state)
    if restored is None:
        fitted = classification.data_dependent_init(config, new_state, dataset.splits["train"][0], info)
        restored = averaging.restarted(source_run.init_from(config, fitted, experiment, split)), {}
    state, record = processes.broadcast_state(*restored)
    training.announce(devices, dataset, state)
    run_record.write_start(
        workdir, config, experiment, dataset, state, split=split, steps=steps, devices=devices.description
    )

    # --- Train, with evaluations and checkpoints.
    plan = training.plan(config, steps, experiment.learning_rate)
    batches = training.batches_of(config, dataset, split, experiment.task, device_count=devices.number)
    outputs = training.output(
        config, workdir, checkpoints, experiment, dataset, state, record, split=split, steps=steps
    )
    with outputs as output:
        result = loop.train(
            state,
            record,
            task=experiment.task,
            plan=plan,
            data=batches,
            devices=devices.number,
            output=output,
            stop=stop,
        )
    if not processes.is_main():
        return 0

    # --- Report.
    summary = run_record.summary(config, experiment, result, split, dataset, workdir.path)
    classification_report.write_report(
        workdir.path,
        experiment,
        test=dataset.splits[split],
        files=file_names(dataset, split),
        result=result,
        summary=summary,
        command=options.command_line("classify", config),
        mixed=bool(config.mixup or config.cutmix),
    )
    return run_record.finish(workdir, config, summary)


if __name__ == "__main__":
    app.run(main, ClassifyConfig)
