"""``python -m bridge`` is the command line, wherever another program owns the name ``bridge``."""

from bridge.cli import main

if __name__ == "__main__":
    main()
