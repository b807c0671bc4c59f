"""`python -m bridge` is `kestra-bridge`."""

from bridge.cli import main

if __name__ == "__main__":
    main()
