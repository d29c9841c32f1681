"""Several prompts as one batch.

Legend: B prompts, S tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dg_mlx.model.media import Media

from .prompt import Prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Padded:
    """Prompts with padding on the left, so that all end together."""

    ids_BS: NDArray[np.int32]
    """0 where there is padding."""
    real_BS: NDArray[np.bool_] | None
    """Which ids are a prompt's; None: all."""
    media: Media | None
    """All pictures, by row and place in `ids_BS`."""

    @staticmethod
    def of(prompts: Sequence[Prompt]) -> Padded:
        """At least one prompt, none of them empty."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids_BS = np.zeros((len(prompts), longest), np.int32)
        real_BS = np.zeros(ids_BS.shape, np.bool_)
        images = []
        for row, prompt in enumerate(prompts):
            start = longest - len(prompt.ids)
            ids_BS[row, start:], real_BS[row, start:] = prompt.ids, True
            for image in prompt.media.images if prompt.media is not None else ():
                images.append(replace(image, row=row, start=start + image.start))
        return Padded(
            ids_BS=ids_BS,
            real_BS=None if real_BS.all() else real_BS,
            media=Media(images=tuple(images)) if images else None,
        )
