"""Numbers of the published checkpoint that several test files hold code against."""

from dg_mlx.settings import GenerationSettings

PUBLISHED = GenerationSettings(
    max_new_tokens=256,
    max_denoising_steps=48,
    entropy_bound=0.1,
    t_max=0.8,
    t_min=0.4,
    stability_threshold=1,
    confidence_threshold=0.005,
    eos_token_id=(1, 106, 50),
)
