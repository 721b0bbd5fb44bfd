"""`python -m wprox`: the command line."""

from wprox.app.cli import main

if __name__ == "__main__":
    main()
