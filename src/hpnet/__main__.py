"""`python -m hpnet` is `hpnet`; torchrun needs it."""

import sys

from hpnet.cli import main

sys.exit(main())
