"""The demo's noise schedule: variance preserving, cosine, 1,000 steps, v-prediction."""

from __future__ import annotations

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

TRAIN_STEPS = 1000


def noise_scheduler() -> DDIMScheduler:
    """The scheduler used in training and in sampling.

    Trailing steps begin at t = 999, where the cosine schedule's signal-to-noise ratio is 2e-9: the start is pure noise,
    as in training. The predicted image is not clipped, so that the saturation of a high scale can be seen.
    """
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return scheduler
