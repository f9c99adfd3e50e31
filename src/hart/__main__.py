"""`python -m hart`, the same as the command `hart`."""

from hart.cli import command

if __name__ == "__main__":
    command()
