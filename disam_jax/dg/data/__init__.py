"""Labelled data made of domains: readers, splits, batches and augmentation.

domains     a data set in memory
registry    data sets by name, from the files of this package and from other packages
load        a data set by its name or path
names       names of data sets, domains and classes
digits      handwritten digits under named shifts, no download
walk        which files in a folder of domains and classes are its images
images      one image from a file
folder      images in `DIR/domain/class/*.jpg`
domainbed   PACS, VLCS, OfficeHome, TerraIncognita and DomainNet as DomainBed stores them
arrays      `{"x", "y", "domain"}` in an npz file
npz         the format of npz files, checked before memory is taken
sources     data sets in public Git repositories, fetched and converted
array_cache arrays that take long to compute, on disk
features    an image as 176 numbers
splits      which examples of a domain train and which validate
keys        random keys, from the seed, the target and the step of a run
sampling    which examples make up the batch of a step
batches     the batches of a run, from memory
streaming   the same batches for images that do not fit into memory
augment     random crops, flips and colours, on the device
"""
