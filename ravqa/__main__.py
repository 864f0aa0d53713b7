"""`python -m ravqa` is the console script `ravqa`."""

from ravqa.cli import main

if __name__ == "__main__":
    main()
