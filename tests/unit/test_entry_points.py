"""Python entry points of the outside contract are importable, and heavy packages load on use."""

import subprocess
import sys


def test_entry_points_of_model_and_training_are_importable():
    from videoar.model import (
        PRESETS,
        ModelConfig,
        MultiScaleBSQ,
        TokenizerConfig,
        VideoAR,
        VideoTokenizer,
        sample,
    )
    from videoar.training import TokenLoader

    assert {"tiny", "small", "L", "XL", "4B"} <= PRESETS.keys()
    assert isinstance(PRESETS["tiny"], ModelConfig)
    assert VideoAR(PRESETS["tiny"]).num_parameters() > 0
    assert MultiScaleBSQ(num_bits=48, scales=((1, 1), (2, 2))).grid == (2, 2)
    assert VideoTokenizer.__init__.__annotations__["cfg"] is TokenizerConfig
    assert callable(sample)
    assert callable(TokenLoader)


def test_packages_load_no_torch_on_import():
    code = "import sys, videoar.model, videoar.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
