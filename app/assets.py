"""The files of `static/`."""

from importlib import resources


def asset(name: str) -> str:
    """The text of one of them."""
    return resources.files(__package__).joinpath("static", name).read_text(encoding="utf-8")
