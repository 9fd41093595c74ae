"""``python -m stvit_cli``, which is what ``torchrun -m stvit_cli`` starts."""

import sys

from stvit_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
