"""A domain generalization benchmark: data, networks, methods, training, sweeps and reports of `disam-jax`.

The modules are imported one by one where they are used, so importing this package is free. Imports point upwards in
this list only:

    errors, reading, ranges    what every file uses: the user's mistakes, files, ranges of numbers
    results                    what is measured of the runs of a sweep
    data                       readers, splits, batches, augmentation
    models                     networks as pure functions
    methods                    ways to compute a gradient; add yours here
    pretrained, peft           checkpoints, and what is trained of them
    training                   one run: configuration, training step, evaluation, weight averages
    runners                    many runs in one compiled program
    sweep                      which runs, their results on disk, which one is reported
    report                     scores, statistics, tables, figures
    diagnosis                  whether DISAM will help, told before training
    cli                        the command line
"""
