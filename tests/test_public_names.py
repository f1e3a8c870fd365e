"""`from holdfast import …`: every name is there, and none costs an import of torch before it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import holdfast


def test_every_public_name_is_there() -> None:
    assert sorted(holdfast.__all__) == sorted(name for names in holdfast._HOMES.values() for name in names)
    for name in holdfast.__all__:
        assert getattr(getattr(holdfast, name), "__name__", name) == name


def test_no_other_name_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = holdfast.Nothing


def test_importing_holdfast_loads_no_torch() -> None:
    program = "import sys, holdfast; assert 'torch' not in sys.modules; holdfast.TAR; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
