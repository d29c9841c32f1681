"""`python -m dg_mlx.cli`, where the `dg-mlx` command is not on the path."""

import sys

from . import main

sys.exit(main())
