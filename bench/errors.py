"""The one exception that stands for "this was not measured"."""


class BenchError(Exception):
    """A measurement cannot be had or cannot be trusted; the message is one sentence."""
