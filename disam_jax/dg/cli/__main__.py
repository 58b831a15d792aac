"""`python -m disam_jax.dg.cli` is `disam-jax`."""

import sys

from disam_jax.dg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
