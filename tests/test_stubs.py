"""What editors and type checkers see of both APIs is what the constructors take."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

RIGHT = """
import numpy as np
import torch

import schuss.numpy
import schuss.torch
from schuss.rules import Lion
from schuss.schedules import Cosine

model = torch.nn.Linear(2, 2)
adamw = schuss.torch.AdamW(model.parameters(), lr=Cosine(1e-3, steps=9), betas=(0.9, 0.95), max_norm=1.0)
adamw.step()
schuss.torch.SGD(model.named_parameters(), 0.1, momentum=0.9, foreach=True)
schuss.torch.Adam([{"params": model.parameters()}], lr=torch.tensor(0.1))
schuss.torch.LBFGS(model.parameters(), history_size=3)
adam = schuss.numpy.Adam(lr=0.1, ema_decay=0.99)
adam.lr = 0.2
adam.max_norm, adam.seed = None, 3
mine = schuss.numpy.optimizer(Lion)(lr=0.1)
mine.betas = (0.9, mine.lr)
adam.update({"w": np.ones(3)}, {"w": np.ones(3)})
"""
WRONG = {
    "schuss.torch.AdamW(model.parameters(), weight_deacy=0.1)": "weight_deacy",
    'schuss.torch.AdamW(model.parameters(), lr="fast")': '"lr"',
    "schuss.torch.Adam(model.parameters(), betas=0.9)": '"betas"',
    'schuss.torch.SGD(model.parameters(), rounding="up")': '"rounding"',
    "schuss.torch.LBFGS(model.parameters(), histroy=3)": "histroy",
    "schuss.torch.Adams": "Adams",
    "schuss.numpy.Adam(learning_rate=0.1)": "learning_rate",
    'schuss.numpy.SGD(momentum="a")': '"momentum"',
    "adam.learning = 3": "learning",
    "adam.learning_rate": "learning_rate",
    'adam.lr = "fast"': '"lr"',
}


def test_the_stubs_are_what_the_table_says():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/stubs.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_type_checker_knows_right_calls_from_wrong_ones(tmp_path):
    script, configuration = tmp_path / "script.py", tmp_path / "pyrightconfig.json"
    script.write_text(RIGHT + "\n".join(WRONG) + "\n")
    venv = Path(sys.prefix)
    configuration.write_text(
        json.dumps(
            {
                "typeCheckingMode": "strict",
                "extraPaths": [str(ROOT / "src")],
                "venvPath": str(venv.parent),
                "venv": venv.name,
                "reportUnusedExpression": False,
                "reportUnknownMemberType": False,
            }
        )
    )
    command = [sys.executable, "-m", "pyright", "-p", str(configuration), "--outputjson"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["generalDiagnostics"]
    first = RIGHT.count("\n")
    by_line = {
        one["range"]["start"]["line"] - first: one["message"] for one in found if one["severity"] == "error"
    }
    assert sorted(by_line) == list(range(len(WRONG))), by_line
    for line, said in enumerate(WRONG.values()):
        assert said in by_line[line]
