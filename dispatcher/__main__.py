"""`python -m dispatcher`: the command line, for those who have a Python but not our console script."""

from dispatcher.cli import main

if __name__ == "__main__":
    main(prog_name="dispatcher")
