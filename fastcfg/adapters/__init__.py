"""Drop-ins for other projects. Each module imports its framework; ``import fastcfg`` imports none of them."""
