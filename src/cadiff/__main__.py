"""`python -m cadiff`: the same as the `cadiff` command."""

from cadiff.cli import run

if __name__ == "__main__":
    run()
