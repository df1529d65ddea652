"""stepaudio: the page and its API on one port. Settings -> logging -> pipeline -> serve.

Run ``python app.py --help`` for the settings; ``python -m stepaudio`` has the other commands.
To understand the product, read stepaudio/pipeline.py next.
"""

import sys

from stepaudio.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
