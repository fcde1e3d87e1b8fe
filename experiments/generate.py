"""Trains a DCGAN and scores its samples: python -m experiments.generate --workdir=W"""

from experiments.cli import app, options, validation
from experiments.cli.config import GenerateConfig
from train.signals import Stop


def main(config: GenerateConfig) -> int:
    validation.check_generate(config)
    stop = Stop()  # Installs signal handlers first: the imports below take seconds.
    from experiments.reporting import generation_report, run_record
    from experiments.setup import generation, stored_network, training
    from experiments.setup.experiment import eval_split
    from train import loop
    from train.parallel import processes

    devices = training.start_devices(config, stop)
    workdir = training.open_workdir(config)

    # --- Data, network, optimizer and task. Invalid configurations are rejected here, before any computation.
    with training.checked_on_all_processes(config, workdir):
        dataset = generation.load_dataset(config)
        info = generation.dataset_info(dataset)
        steps = training.total_steps(config, dataset, devices.number)
        split = eval_split(dataset, config.eval_split)
        stored_network.check_init_from(config)
        scorer, info = generation.create_scorer(config, info, dataset, split, stop=stop)
        experiment = generation.create_experiment(config, info, devices=devices.number, steps=steps, scorer=scorer)
    if summary := training.stored_summary(workdir, config, experiment, dataset, split):
        return run_record.print_complete(summary)

    # --- State: from the newest checkpoint of the workdir, else from --init_from, else random weights.
    new_state = training.initialize(experiment, config, dataset, device_count=devices.number)
    if config.dry_run:
        config, workdir, dataset, steps = training.dry_run(config, workdir, dataset, split, devices.number)
    checkpoints = training.open_checkpoints(workdir, config, experiment, split)
    restored = training.restore(checkpoints, new_state)
    if restored is None:
        restored = stored_network.init_from(config, new_state), {}
    state, record = processes.broadcast_state(*restored)
    training.announce(devices, dataset, state)
    run_record.write_start(
        workdir, config, experiment, dataset, state, split=split, steps=steps, devices=devices.description
    )

    # --- Train, with evaluations and checkpoints.
    plan = training.plan(config, steps, experiment.learning_rate)
    batches = training.batches_of(config, dataset, split, experiment.task, device_count=devices.number)
    samples = generation_report.SampleWriter(workdir.path / "samples", config, experiment)
    task = experiment.task._replace(prepare_eval=samples)  # Samples from the same latent vectors at each evaluation.
    outputs = training.output(
        config, workdir, checkpoints, experiment, dataset, state, record, split=split, steps=steps
    )
    with outputs as output:
        result = loop.train(
            state,
            record,
            task=task,
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
    generation_report.write_report(
        workdir.path,
        config,
        experiment,
        test=dataset.splits[split],
        result=result,
        summary=summary,
        command=options.command_line("generate", config),
    )
    return run_record.finish(workdir, config, summary)


if __name__ == "__main__":
    app.run(main, GenerateConfig)
