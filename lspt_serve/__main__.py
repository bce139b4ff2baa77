"""The command line as a module: python -m lspt_serve, torchrun -m lspt_serve."""

from lspt_serve.cli import main

if __name__ == "__main__":
    main()
