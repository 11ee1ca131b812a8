"""`python -m align_jax COMMAND ...`"""

import sys

from align_jax.cli import main

sys.exit(main())
