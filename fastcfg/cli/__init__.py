"""The command `fastcfg`; `fastcfg.cli.app` needs typer and rich."""
