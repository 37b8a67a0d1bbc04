"""Where a guided pipeline is in its run, and what its scheduler says of the noise level there."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_pipelines import CASES, STEPS, drawn, made

from fastcfg import APG, CFG, InDomain
from fastcfg.adapters.diffusers import guided
from fastcfg.adapters.diffusers.noise import SchedulerLevels, noise_levels
from fastcfg.adapters.diffusers.pipelines.calls import Call
from fastcfg.adapters.diffusers.pipelines.space import given_mask
from fastcfg.prediction import convert
from fastcfg.schedules import Interval, SigmaInterval

# --- Steps and noise levels -------------------------------------------------------------------------------------------


def test_an_img2img_run_counts_its_own_steps() -> None:
    rule = CFG(Interval(5.0, 0.0, 0.5))
    with guided(made("sd_img2img"), rule) as guidance:
        CASES["sd_img2img"].run(3.0, strength=0.5, num_inference_steps=4)
    assert guidance.num_steps == 2 and guidance.step == 2
    assert (guidance.passes_run, guidance.passes_saved) == (3, 1)


def test_schedules_run_on_the_scheduler_s_noise_levels() -> None:
    pipe = made("sd")
    pipe.scheduler.set_timesteps(STEPS)
    first, second = pipe.scheduler.sigmas[:2].tolist()
    with guided(pipe, CFG(SigmaInterval(5.0, low=second, high=first))) as guidance:
        CASES["sd"].run(3.0)
    assert (guidance.passes_run, guidance.passes_saved) == (3, 1)


PLAIN = {"clip_sample": False}
PRESERVING = ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "LCM", "TCD")
RATIO = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")
SOLVERS = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver")
KINDS = ("epsilon", "v_prediction", "sample")

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {**PLAIN, "prediction_type": kind}) for name in PRESERVING for kind in KINDS),
    *((name, {"prediction_type": kind}) for name in ("CogVideoXDDIM", "CogVideoXDPM") for kind in KINDS),
    *((name, {"prediction_type": kind}) for name in RATIO for kind in KINDS[:2]),
    ("EulerDiscrete", {"prediction_type": "sample"}),
    ("LMSDiscrete", {"prediction_type": "sample"}),
    *((name, {"prediction_type": kind}) for name in SOLVERS for kind in KINDS),
    *(
        (name, {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0})
        for name in SOLVERS
        if name not in ("SASolver", "DEISMultistep")
    ),
    # Zero terminal SNR: no signal at the first step.
    *(
        (name, {"prediction_type": kind, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **more})
        for kind in ("v_prediction", "sample")
        for name, more in (
            *((n, PLAIN) for n in PRESERVING),
            *((n, {}) for n in ("CogVideoXDDIM", "CogVideoXDPM", "EulerDiscrete")),
            *((n, {}) for n in ("DPMSolverMultistep", "UniPCMultistep")),
        )
    ),
    (
        "EulerAncestralDiscrete",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    ("PNDM", {}),
    ("PNDM", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("PNDM", {"skip_prk_steps": True, "prediction_type": "v_prediction", "set_alpha_to_one": True}),
    ("LMSDiscrete", {}),
    ("LMSDiscrete", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("EulerDiscrete", {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("UniPCMultistep", {"solver_order": 3}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}),
    ("UnCLIP", PLAIN),
    ("UnCLIP", {**PLAIN, "prediction_type": "sample"}),
    ("DDPMWuerstchen", {}),
    ("DDPMWuerstchen", {"scaler": 2.0}),
    *((name, {"prediction_type": kind}) for name in ("EDMEuler", "EDMDPMSolverMultistep") for kind in KINDS[:2]),
    ("FlowMatchEulerDiscrete", {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchEulerDiscrete", {"invert_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    ("FlowMatchHeunDiscrete", {}),
    ("FlowMatchLCM", {}),
    ("LTXEulerAncestralRF", {}),
]


def described(name: str, config: dict[str, Any], steps: int = 8) -> Any:
    made = getattr(diffusers, f"{name}Scheduler")(**config)
    made.set_timesteps({"LCM": 4, "SCM": 2}.get(name, steps))
    return made


@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=["-".join((n, *map(str, c.values()))) for n, c in CONFIGS])
def test_a_model_that_knows_the_sample_ends_at_it(name: str, config: dict[str, Any]) -> None:
    """The scheduler's own steps, from what its levels say that such a model predicts, end at the known clean sample."""
    scheduler = described(name, config)
    clean = 0.5 * drawn(1, 4, 8, 8, seed=0).double()
    sample = drawn(1, 4, 8, 8, seed=1).double() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    units = scheduler.config.get("sigma_data", 1.0) if name.startswith("EDM") else 1.0
    torch.manual_seed(0)
    steps = len(scheduler.timesteps) - (name == "DDPMWuerstchen")  # Its timesteps hold the end, too.
    found = noise_levels(scheduler)
    assert found is not None and all(0.0 <= level.alpha <= 1.0001 for level in found)
    for step in range(steps):
        t = scheduler.timesteps[step]
        levels = SchedulerLevels(scheduler, step, len(scheduler.timesteps), found)
        x = levels.model_sample(sample, t)
        prediction = levels.prediction()
        known = convert(
            clean / units, x, "x0", prediction.kind, alpha=prediction.alpha, sigma=prediction.sigma, dtype=torch.float64
        )
        given = {"timestep": t.expand(1) if name == "DDPMWuerstchen" else t}
        if name == "CogVideoXDPM":
            given |= {"old_pred_original_sample": None, "timestep_back": None}
        if name == "LTXEulerAncestralRF":
            sample = sample.float()
        result = scheduler.step(levels.sign * known.to(sample.dtype), sample=sample, return_dict=False, **given)
        sample = result[0].double()
    # Levels are in float32, and those by alphas_cumprod end at a noise of up to 0.03; a wrong kind, sign or level is
    # off by the size of the sample. Their noise is 2.13 times as long as the sample.
    assert float((sample - clean).norm() / clean.norm()) < 0.07


@pytest.mark.parametrize("stochastic", [False, True])
def test_tokens_with_a_timestep_each(stochastic: bool) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(8)
    clean = 0.5 * drawn(2, 6, 4, seed=0).double()
    sample = drawn(2, 6, 4, seed=1).double()
    given = torch.tensor([[1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    sample = torch.where(given.unsqueeze(-1), clean, sample)
    for step, t in enumerate(scheduler.timesteps):
        times = torch.where(given, 0.0, t.double())
        levels = SchedulerLevels(scheduler, step, 8, None, times)
        prediction = levels.prediction()
        alpha, sigma = prediction.alpha.unsqueeze(-1), prediction.sigma.unsqueeze(-1)
        velocity = (sample - clean) / sigma.clamp_min(1e-9)
        assert torch.equal(alpha, 1 - sigma)
        result = scheduler.step(levels.sign * velocity, t, sample, per_token_timesteps=times, return_dict=False)[0]
        sample = torch.where(given.unsqueeze(-1), sample, result.double())
    torch.testing.assert_close(sample, clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepInverse", {"prediction_type": "v_prediction"}),
        ("SASolver", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_a_scheduler_makes_of_a_prediction(name: str, config: dict[str, Any]) -> None:
    """For those whose steps end elsewhere, or at random."""
    scheduler = described(name, config)
    output, sample = drawn(1, 4, 8, 8, seed=0), drawn(1, 4, 8, 8, seed=1)
    levels = SchedulerLevels(scheduler, 0, 8)
    scheduler._init_step_index(scheduler.timesteps[0])
    theirs = scheduler.convert_model_output(output, sample=sample)
    x = levels.model_sample(sample, scheduler.timesteps[0])
    ours = levels.prediction().convert(levels.sign * output, x, "x0")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_deis_flow_is_taken_to_noise() -> None:
    scheduler = described("DEISMultistep", {"prediction_type": "flow_prediction", "use_flow_sigmas": True})
    output, sample = drawn(1, 4, 8, 8, seed=0), drawn(1, 4, 8, 8, seed=1)
    levels = SchedulerLevels(scheduler, 0, 8)
    scheduler._init_step_index(scheduler.timesteps[0])
    theirs = scheduler.convert_model_output(output, sample=sample)
    torch.testing.assert_close(levels.prediction().convert(output, sample, "eps"), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [("SCM", {}), ("DDIMInverse", {}), ("IPNDM", {}), ("FlowMatchLCM", {"invert_sigmas": True})],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_scheduler_that_is_not_described_is_refused_by_name(name: str, config: dict[str, Any]) -> None:
    scheduler = described(name, config)
    levels = SchedulerLevels(scheduler, 0, 8)
    assert levels.sigma() is None
    with pytest.raises(ValueError, match=f"{name}Scheduler"):
        levels.prediction()


def test_no_signal_is_a_large_ratio_and_an_eps_model_says_so() -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    levels = SchedulerLevels(described("DDIM", {**zero, "prediction_type": "v_prediction"}), 0, 8)
    assert levels.sigma() == 4096.0 and levels.prediction().alpha == 0.0
    levels = SchedulerLevels(described("DDIM", zero), 0, 8)
    assert levels.prediction().alpha == 2.0**-12, "as much as none, and its maps have an inverse"


def test_the_noise_falls_where_a_scheduler_counts_upwards() -> None:
    """Mochi's and LongCat-AudioDiT's."""
    scheduler = described("FlowMatchEulerDiscrete", {"invert_sigmas": True})
    noise = [SchedulerLevels(scheduler, step, 8).sigma() for step in range(8)]
    assert noise == sorted(noise, reverse=True) and noise[0] == 1.0 and noise[-1] < 0.01


# --- What was given ---------------------------------------------------------------------------------------------------


def call_with(timestep: torch.Tensor) -> Call:
    class Denoiser(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> None: ...

    return Call(Denoiser(), ("cond",), (), {"hidden_states": None, "timestep": timestep}, timestep, timestep)


def test_tokens_and_frames_that_were_given_are_told_by_their_timesteps() -> None:
    tokens = torch.tensor([[0.0, 500.0, 500.0], [500.0, 500.0, 0.0]])
    mask = given_mask(call_with(tokens), torch.zeros(2, 3, 4), None)
    assert mask is not None and mask.tolist() == [[[False], [True], [True]], [[True], [True], [False]]]
    assert torch.equal(mask, given_mask(call_with(torch.zeros(2)), torch.zeros(2, 3, 4), tokens))
    # Wan 2.2 has a timestep for each patch of 2 x 2, the first frame's being 0; twice, for both passes.
    patches = torch.full((2, 3, 2, 2), 500.0)
    patches[:, 0] = 0.0
    mask = given_mask(call_with(patches.flatten(1)), torch.zeros(1, 4, 3, 4, 4), None)
    assert mask is not None and mask.shape == (1, 1, 3, 4, 4)
    assert not mask[:, :, 0].any() and mask[:, :, 1:].all()
    frames = given_mask(call_with(torch.tensor([[0.0, 9.0, 9.0]])), torch.zeros(1, 4, 3, 4, 4), None)
    assert torch.equal(frames, mask)
    for other in (torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 7)):
        assert given_mask(call_with(other), torch.zeros(2, 4, 3, 4, 4), None) is None


@pytest.mark.parametrize("name", ["sd", "sd_ddim", "sd3", "wan"])
def test_rules_with_a_domain_get_the_noise_level(name: str) -> None:
    case, pipe = CASES[name], made(name)
    with guided(pipe, InDomain(APG(5.0, 0.0), "x0")):
        in_x0 = case.run(3.0)
    with guided(pipe, APG(5.0, 0.0)):
        in_own = case.run(3.0)
    assert in_x0.isfinite().all() and not torch.equal(in_x0, in_own)
    # Without a norm the domain makes no difference.
    with guided(pipe, InDomain(APG(5.0, 1.0, 0.0), "x0")):
        plain = case.run(3.0)
    with guided(pipe, CFG(5.0)):
        torch.testing.assert_close(plain, case.run(3.0), rtol=1e-3, atol=1e-3 * float(plain.std()))
