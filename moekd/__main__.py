"""`python -m moekd` and `accelerate launch -m moekd`."""

from .cli.main import main

if __name__ == "__main__":
    main()
