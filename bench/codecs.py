"""How fast codecs are: the command line of codec_benchmark.py.

Nothing else is here: a module of this name, if it were imported, would hide Python's own codecs.
"""
# ruff: noqa: A005

from demo_extra import demo_imports

with demo_imports():
    from codec_benchmark import main, parse_arguments

__all__ = ["main", "parse_arguments"]

if __name__ == "__main__":
    main()
