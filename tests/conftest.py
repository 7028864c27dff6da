"""What the end-to-end tests share: flags of a run that takes milliseconds a step."""

import json

import pytest
from entry import TINY


@pytest.fixture
def tiny(tmp_path):
    """Flags of a tiny network, dropout included, on the digits."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return [
        "--model_config_name_or_path", str(path), "--train_batch_size", "8", "--eval_batch_size", "4",
        "--ddpm_num_inference_steps", "10", "--logging_steps", "1", "--lr_warmup_steps", "3",
        "--learning_rate", "1e-3",
        "--validation_size", "20", "--validation_steps", "4", "--cache_dir", str(tmp_path / "cache"),
    ]  # fmt: skip
