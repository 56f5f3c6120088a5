"""Shell: models on the hub, fetched through huggingface_hub. Where it is and how it knows its user is that package's to say:
HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN. Nothing that runs code when it is opened is ever fetched."""

import glob
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxpatch.models import sources

WITHOUT_WEIGHTS = ("*.json", "*.model", "*.jinja", "adapter_model.safetensors")
"""Files of a model that say what it is and how it reads text; an adapter's vocabulary stands among its weights, which are small."""
CONFIGS = ("config.json", "adapter_config.json")
"""One of which every model or adapter has that is not a GGUF file."""
SHOWN = 20
"""Files named in a message."""
_FORM = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<file>.+\.gguf))?")


class Id(NamedTuple):
    """What a hub id names. revision: a branch, tag or commit; None for what the hub gives by itself. file: one .gguf file; None for the
    model that the repository is."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """
        >>> str(Id("owner/name", "v1", "file.gguf"))
        'owner/name@v1/file.gguf'
        """
        return self.repo + f"@{self.revision}" * bool(self.revision) + f"/{self.file}" * bool(self.file)


def id_of(name: str) -> Id | None:
    """What a name says: ``owner/name``, ``owner/name@revision``, or either and ``/file.gguf``; None for anything else.

    Before a file a revision ends at the first slash, but for the hub's own ``refs/pr/1``. A file is looked for in a folder of that name
    where there is one here, and not on the hub.

    >>> id_of("owner/name@refs/pr/1"), id_of("owner/name@refs/pr/1/file.gguf").file
    (Id(repo='owner/name', revision='refs/pr/1', file=None), 'file.gguf')
    >>> id_of("owner/name@v1/quantised/file.gguf")
    Id(repo='owner/name', revision='v1', file='quantised/file.gguf')
    >>> id_of("models/file.gguf"), id_of("./owner/name"), id_of("no/such/folder")
    (None, None, None)
    """
    found = _FORM.fullmatch(name)
    if found is None or name.startswith((".", "~")):
        return None
    if found["file"] is None:
        return None if name.endswith(".gguf") else Id(found["repo"], found["revision"])
    inside = PurePosixPath(name).parts
    return None if ".." in inside or Path(*inside[:2]).exists() else Id(found["repo"], found["revision"], found["file"])


def form_for(name: str) -> str:
    """What a hub id would look like of what this name seems to mean."""
    return "owner/name/file.gguf" if name.endswith(".gguf") else "owner/name"


def fetch(name: str, *, weights: bool = True) -> Path:
    """The folder, or the .gguf file, of a hub id. Of a .gguf file also the tokenizer beside it, as a file that is here is read with it.

    Args: weights: False leaves them out; a .gguf file comes whole, for all that is known of it is in there.

    Raises: FileNotFoundError where the hub has none, or GGUF files alone and none of them was named: it names them.
    """
    import huggingface_hub

    known = id_of(name) or Id(name)
    wanted = [*WITHOUT_WEIGHTS, *["*.safetensors"] * weights]
    if known.file is not None:
        folder = PurePosixPath(known.file).parent
        wanted = [glob.escape(str(path)) for path in (known.file, *(folder / each for each in sources.TOKENIZER_FILES))]
    try:
        found = Path(huggingface_hub.snapshot_download(known.repo, revision=known.revision, allow_patterns=wanted))
    except Exception as error:
        raise FileNotFoundError(
            f"{name}: no such {'file' if known.file else 'directory'} here, and the hub did not give it "
            f"({type(error).__name__}: {error}). Check the spelling, or download it and give its path."
        ) from error
    if known.file is not None:
        if (found / known.file).is_file():
            return found / known.file
        raise FileNotFoundError(f"{name}: {known._replace(file=None)} has no such file{_listed(known, '; it has ')}")
    is_model = any(found.glob("*.safetensors")) if weights else any((found / name).exists() for name in CONFIGS)
    if not is_model and (others := _listed(known, "; name one of its GGUF files: ")):
        raise FileNotFoundError(f"{name}: it has no {'safetensors' if weights else 'config.json'}{others}")
    return found


def _listed(known: Id, before: str) -> str:
    """The end of a message that names a repository's .gguf files; nothing where it has none, or the hub is not to be reached."""
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(known.repo, revision=known.revision)
    except Exception:  # of a hub that cannot be asked; the refusal then goes without them
        return ""
    files = [str(known._replace(file=file)) for file in sorted(names) if file.endswith(".gguf")]
    more = f", and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return before + ", ".join(files[:SHOWN]) + more if files else ""
