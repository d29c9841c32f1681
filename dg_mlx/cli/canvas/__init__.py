"""The canvas on a terminal: it is drawn while it settles, and leaves nothing but the answer.

    events ─ replay ─ frame ─▶ cells ─ layout ─▶ rows ─ painter ─▶ bytes ─▶ tty

`live` runs it, beside the generation.
"""
