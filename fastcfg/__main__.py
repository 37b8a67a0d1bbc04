"""Run the command line as ``python -m fastcfg``."""

from .cli.app import app

app(prog_name="fastcfg")
