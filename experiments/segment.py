"""Trains and evaluates SegNet: python -m experiments.segment --workdir=W --steps=1000"""

from experiments.cli import app, options, validation
from experiments.cli.config import SegmentConfig
from train.signals import Stop


def main(config: SegmentConfig) -> int:
    validation.check_segment(config)
    stop = Stop()  # Installs signal handlers first: the imports below take seconds.
    from experiments.reporting import run_record, segmentation_report
    from experiments.setup import segmentation, source_run, training
    from experiments.setup.experiment import eval_split
    from train import loop
    from train.parallel import processes

    devices = training.start_devices(config, stop)
    workdir = training.open_workdir(config)

    # --- Data, network, optimizer and task. Invalid configurations are rejected here, before any computation.
    with training.checked_on_all_processes(config, workdir):
        dataset = segmentation.load_dataset(config, **source_run.image_form(config))
        info = segmentation.dataset_info(config, dataset)
        steps = training.total_steps(config, dataset, devices.number)
        split = eval_split(dataset, config.eval_split)
        experiment = segmentation.create_experiment(config, info, devices=devices.number, steps=steps)
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
        restored = source_run.init_from(config, new_state, experiment, split), {}
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
    segmentation_report.write_report(
        workdir.path,
        experiment,
        test=dataset.splits[split],
        result=result,
        summary=summary,
        command=options.command_line("segment", config),
    )
    return run_record.finish(workdir, config, summary)


if __name__ == "__main__":
    app.run(main, SegmentConfig)
