"""Domain generalisation, measured: data, networks, methods, protocol, sweeps and report of `disam-jax`.

The modules are imported one by one where they are used, so that importing this package is free. In the order in which
a sweep needs them:

    data        readers, splits, batches, augmentation
    models      networks as pure functions
    methods     ways to a gradient; add yours here
    averaging   averages of the weights
    setting     what all runs share
    search      which hyperparameters are tried
    training    one run: its start, its step
    measure     what is measured of a run
    program     many runs in one compiled program
    memory      how many fit
    results     what was measured
    store       the same on disk, whole after any interruption
    sweep       all of it
    selection   which point of which run is reported
    report      scores, statistics, tables, figures
    options     the options of the command line
    cli         the command line
"""
