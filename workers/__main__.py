"""``python -m workers``: the same as the ``workers`` command."""

from workers.commands.cli import main

if __name__ == "__main__":
    main()
