"""A model made ready to be walked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import pytest

from holdfast.core.options import Options
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.session import open_session
from tests.conftest import SmallTestbed
from tests.engine.test_checkpoint import rewrite_json

# Loading makes every weight that is read trainable, so what code freezes while it builds a model has no effect. This comes later.
CODE = """
from transformers import LlamaForCausalLM

class Model(LlamaForCausalLM):
    def tie_weights(self, *arguments, **options):
        super().tie_weights(*arguments, **options)
        self.model.requires_grad_(False)
"""


@pytest.mark.parametrize(("view", "frozen"), [("attacker", False), ("defender", True)])
def test_a_model_whose_code_freezes_weights_keeps_no_attacker_from_training_them(
    tiny_testbed: SmallTestbed, tmp_path: Path, view: Literal["attacker", "defender"], frozen: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_testbed.model.path, folder)
    (folder / "modeling.py").write_text(CODE)
    rewrite_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    session = open_session(Checkpoint(str(folder)), tiny_testbed.domain, view, 0, Options(trust_remote_code=True))
    assert {not weight.requires_grad for weight in session.model.model.parameters()} == {frozen}
