"""`python -m holdfast`: the command line, where its console script is not at hand."""

from holdfast.cli.app import entry

if __name__ == "__main__":
    entry()
