"""Domain generalisation, measured: data, models, protocol and report of `disam-jax compare`.

The modules are imported one by one where they are used, so that importing this package is free:

    domains      a labelled data set made of domains
    digits       handwritten digits under six shifts, no download
    folder       images in `DIR/domain/class/*.jpg`
    features     an image as 176 numbers
    models       a small classifier
    protocol     leave-one-domain-out for ERM, SAM and DISAM in compiled programs
    statistics   means, standard errors and paired differences
    report       the table, the sentences under it, `results.json` and the figure
    cli          the command line
"""
