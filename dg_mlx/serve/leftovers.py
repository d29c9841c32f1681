"""Parts of files that a download leaves in the hub's cache when its process is killed.

huggingface_hub keeps whole files and goes on with the next; a part has a name that no later
download looks for, so it would take up the disk for ever.
https://github.com/huggingface/huggingface_hub/issues/4196
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from dg_mlx.disk import lock

_PART = re.compile(r"(?P<blob>.+)\.[0-9a-f]{8}\.incomplete")


def remove_leftovers(repo: str) -> None:
    """Delete a repo's parts, but for those that another process is writing."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    with suppress(OSError, ValueError):  # no repo, none in the cache, or one that is not ours
        folder = repo_folder_name(repo_id=repo, repo_type="model")
        for path in (cache / folder / "blobs").iterdir():
            part = _PART.fullmatch(path.name)
            if part is None:
                continue
            # The hub's client holds this lock while it writes the blob.
            held = lock(cache / ".locks" / folder / f"{part['blob']}.lock")
            if held is not None:
                with held:
                    path.unlink()
