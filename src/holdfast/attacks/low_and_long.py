"""Fine-tuning at low rates for thousands of steps: hazardous rows mixed with benign ones, or unrelated text alone.

The headline claim of TAR (arXiv 2408.00761) is that a safeguard lasts for thousands of steps, so thousands of steps are run. A
low rate is a test of its own: circuit breakers without a retain term leave a 6.9B model near chance, which reads 27 to 28 on
WMDP after fine-tuning at 1e-3, and 45 to 49 at 2e-5; text that is unrelated to the hazard brings 38 (known from a survey of
EleutherAI's code only). A model that looks destroyed may so be one that a large rate destroys. Unrelated text is the attacker's
benign rows. All rates are ours: those for small models are a tenth of the rate that breaks a shallow safeguard there.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.attacks.finetune import FineTune

_MIXED = FineTune(hazard="hazard_all", benign_share=0.5, learning_rate=1e-4, max_steps=1000)
_UNRELATED = FineTune(benign_share=1.0, learning_rate=1e-4, max_steps=1000)

PRESETS = {
    # Small models, such as the testbed's.
    "full-adamw-1e-4-mixed-1000": _MIXED,
    "full-adamw-1e-4-mixed-5000": replace(_MIXED, max_steps=5000),
    "full-adamw-1e-4-unrelated-1000": _UNRELATED,
    "full-adamw-1e-4-unrelated-5000": replace(_UNRELATED, max_steps=5000),
    # Models of hundreds of millions of weights.
    "full-adamw-1e-5-mixed-1000-small": replace(_MIXED, learning_rate=1e-5),
    "full-adamw-1e-5-mixed-5000-small": replace(_MIXED, learning_rate=1e-5, max_steps=5000),
    "full-adamw-1e-5-unrelated-1000-small": replace(_UNRELATED, learning_rate=1e-5),
    # Models of billions of weights.
    "full-adamw-2e-5-mixed-1000-large": replace(_MIXED, learning_rate=2e-5, batch_size=32),
    "full-adamw-2e-5-mixed-5000-large": replace(_MIXED, learning_rate=2e-5, batch_size=32, max_steps=5000),
    "full-adamw-2e-5-unrelated-1000-large": replace(_UNRELATED, learning_rate=2e-5, batch_size=32),
    "full-adamw-2e-5-unrelated-5000-large": replace(_UNRELATED, learning_rate=2e-5, batch_size=32, max_steps=5000),
}
