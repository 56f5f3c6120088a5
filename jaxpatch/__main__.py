"""``python -m jaxpatch``: the same as ``jaxpatch``, where no script is on the path."""

from jaxpatch.cli import main

if __name__ == "__main__":
    main()
