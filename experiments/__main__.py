"""``python -m experiments``: the command line."""

import sys

try:
    from experiments.command_line import main
except ModuleNotFoundError as error:
    sys.exit(f"python -m experiments needs {error.name}: pip install -e '.[experiments]'")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
