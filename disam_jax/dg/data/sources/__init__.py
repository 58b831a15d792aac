"""Data sets that lie in public Git repositories: where, at which commit, and how they become what `--data` reads.

registry          a source by its name, from the files of this package and from other packages
checkout          the files of one commit, from the network or the cache
convert           a folder of images or an npz file from them, its counts and its checksum
get               all of it: `disam-jax data`
pacs              photos, paintings, cartoons and sketches at 227 pixels
office_caltech10  objects from three cameras and web shops
rsscn7            aerial images at four scales
heart             four hospitals, 13 attributes
reviews           reviews of four kinds of products, as hashed words
"""
