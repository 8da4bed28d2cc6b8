"""`python -m asd_policy` is `asd-policy`."""

from asd_policy.cli import program

if __name__ == "__main__":
    program()
