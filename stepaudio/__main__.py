"""``python -m stepaudio``: see cli.py."""

import sys

from stepaudio.cli import main

if __name__ == "__main__":
    sys.exit(main())
