"""An environment that can't run the package is told so at its import."""

import pytest
from fastcfg_kernels.versions import check_torch


@pytest.mark.parametrize("version", ["2.8.0", "2.8.0a0+git1234", "2.13.0+cpu", "3.0"])
def test_supported_torch(version: str) -> None:
    check_torch(version)


@pytest.mark.parametrize("version", ["2.7.1+cu126", "1.13.0", "2.5.0a0"])
def test_an_older_torch_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(ImportError, match=r"needs torch >= 2\.8, and this .* has .* upgrade torch as your host"):
        check_torch(version)
