"""The native module. Use `warptrace`, which documents what is public."""

__version__: str
