"""How fast codecs are: the command line of codec_benchmark.py.

Nothing else is here: a module of this name, if it were imported, would hide Python's own codecs.
"""
# ruff: noqa: A005

from codec_benchmark import main

if __name__ == "__main__":
    main()
