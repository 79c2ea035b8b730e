"""`python -m videoar`: the command line where the script `videoar` is not on PATH."""

from videoar.cli import main

if __name__ == "__main__":
    main()
