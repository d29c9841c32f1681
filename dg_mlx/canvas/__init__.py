"""Control of the canvas: what is held fixed in it, and what its text must satisfy."""
