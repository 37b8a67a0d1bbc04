"""The rules that came from the field beside their fp64 oracles: projections, perturbed passes, caches, norm caps.

As in :mod:`conformance.cases`, ``terms`` and ``wander`` come from the papers' formulas. Where a sum is of products
``a_i b_i``, its error is at most ``gamma |a| |b|`` (Cauchy-Schwarz).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import fastcfg_kernels as fk
import numpy as np
import torch
from fastcfg_kernels.groups import Groups

from fastcfg import (
    APG,
    LTX2,
    TCFG,
    APGMix,
    Autoguidance,
    CFGZeroStar,
    GatedCFG,
    MaMBOG,
    NormCap,
    Perturbed,
    ResidualCFG,
    Rule,
    SelfAttentionGuidance,
    State,
    guide,
)

from .cases import BY_NAME, EPSILON, Case, Named, clamped, draw, exact, rescaled
from .oracles import nonlinear, perturbed, projection, rescale
from .oracles.arrays import Array, Dims, dot, norm, ratio
from .oracles.rounding import ulp
from .tolerances import check_error

SHAPE = (2, 4, 25, 49)
"""4,900 elements: one whole tile and a part of one."""
TOKENS = (2, 5, 40)
PIXELS = (2, 6, 3, 5)


@dataclass(frozen=True)
class Carried(Case):
    """A case of a rule that reads or writes tensors of its state.

    Attributes:
        reads: names of the state, which the oracle takes beside the predictions.
        writes: what each tensor of the state becomes, as terms that add up to it.
    """

    reads: tuple[str, ...] = ()
    writes: Mapping[str, Callable[[Named], list[Array]]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _nothing(p: Named) -> Array:
    return np.zeros_like(p["cond"])


# --- Projections -------------------------------------------------------------------------------------------------


def apg(name: str, rule: APG) -> Carried:
    """APG with or without its momentum."""
    s, eta, tau, m = rule.scale, rule.eta, rule.norm_threshold, rule.momentum
    dims = rule.dims

    def oracle(p: Named) -> Array:
        return projection.apg(
            uncond=p["uncond"], cond=p["cond"], scale=s, eta=eta, norm_threshold=tau, momentum=m,
            average=p.get("average"), dims=dims, base=rule.base,
        )[0]  # fmt: skip

    def parts(p: Named) -> tuple[Array, Array, Array, Array, Array]:
        u, c = p["uncond"], p["cond"]
        average = m * p["average"] if "average" in p else 0 * u
        total = c - u + average
        limit = np.minimum(1.0, ratio(tau + 0 * norm(c, dims), norm(total, dims), 1.0)) if tau > 0 else 1.0 + 0 * u
        share = (1 - eta) * ratio(dot(c, total, dims), dot(c, c, dims), 0.0)
        return c - u, average, total, limit, share

    def terms(p: Named) -> list[Array]:
        d, average, _, limit, share = parts(p)
        u = p["uncond"]
        out = [u, -s * limit * share * u, s * limit * d, -s * limit * share * d, s * limit * average]
        return [*out, d] if rule.base == "cond" else out

    def wander(p: Named) -> Array:
        d, average, total, limit, share = parts(p)
        c = p["cond"]
        lengths = norm(d, dims) + norm(average, dims)
        cancelled = ratio(lengths, norm(total, dims), 1.0) ** 2
        direction = abs(total - share * c)
        along = abs(1 - eta) * ratio(lengths, norm(c, dims), 0.0) + abs(share)
        return abs(s) * limit * ((0.5 * cancelled * direction if tau > 0 else 0.0) + along * abs(c))

    def average(p: Named) -> list[Array]:
        return [p["cond"] - p["uncond"], *([m * p["average"]] if "average" in p else [])]

    memory = {"reads": ("average",), "writes": {"average": average}} if m else {}
    return Carried(name, rule, oracle, terms, wander, **memory)


def zero_star(name: str, rule: CFGZeroStar) -> Case:
    """CFG-Zero* at a guided step."""
    s, eps = rule.scale, rule.eps
    own = s if rule.base == "cond" else s - 1

    def oracle(p: Named) -> Array:
        return projection.cfg_zero_star(uncond=p["uncond"], cond=p["cond"], scale=s, eps=eps, base=rule.base)

    def shift(p: Named) -> Array:
        u = p["uncond"]
        return ratio(dot(p["cond"], u) - dot(u, u) - eps, dot(u, u) + eps, 0.0)

    def terms(p: Named) -> list[Array]:
        u, d = p["uncond"], p["cond"] - p["uncond"]
        return [u, -own * shift(p) * u, s * d, *([d] if rule.base == "cond" else [])]

    def wander(p: Named) -> Array:
        u, d = p["uncond"], p["cond"] - p["uncond"]
        return abs(own) * (ratio(norm(d), norm(u), 0.0) + abs(shift(p))) * abs(u)

    return Case(name, rule, oracle, terms, wander)


def tcfg(name: str, rule: TCFG, method: str = "closed_form") -> Case:
    """TCFG by its closed form or by the SVD."""
    s = rule.scale
    own = -s if rule.base == "cond" else 1 - s

    def oracle(p: Named) -> Array:
        return projection.tcfg(uncond=p["uncond"], cond=p["cond"], scale=s, base=rule.base, method=method)

    def shares(p: Named) -> tuple[Array, Array, Array, Array]:
        u, c = p["uncond"], p["cond"]
        twice, gap = 2 * dot(c, u), dot(c, c) - dot(u, u)
        r = np.hypot(twice, gap)
        return 0.5 * ratio(twice, r, 0.0), 0.5 * (1 - ratio(gap, r, 0.0)), r, c - u

    def terms(p: Named) -> list[Array]:
        of_cond, of_uncond, _, d = shares(p)
        u, c = p["uncond"], p["cond"]
        out = [own * of_cond * u, own * of_uncond * u, s * u, own * of_cond * d, s * d, own * d, own * u]
        return [*out, c] if rule.base == "cond" else out

    def wander(p: Named) -> Array:
        # Both shares are a coordinate of (twice, gap)/r, which turns by the sums' error over r.
        _, _, r, d = shares(p)
        u, c = p["uncond"], p["cond"]
        lengths = 2 * norm(u) * (norm(u) + norm(d)) + norm(d) * (norm(d) + 2 * norm(u))
        return abs(own) * 0.5 * (ratio(lengths, r, 0.0) + 1) * (abs(c) + abs(u))

    return Case(name, rule, oracle, terms, wander)


def mambo(name: str, rule: MaMBOG) -> Case:
    """MaMBO-G."""
    s, alpha = rule.scale, rule.alpha
    own = s if rule.base == "cond" else s - 1

    def oracle(p: Named) -> Array:
        return projection.mambo_g(uncond=p["uncond"], cond=p["cond"], scale=s, alpha=alpha, base=rule.base)

    def exponent(p: Named) -> Array:
        d = norm(p["cond"] - p["uncond"])
        return alpha * np.where(d == 0, 0.0, ratio(d, norm(p["uncond"]), np.inf)) if alpha else 0 * d

    def terms(p: Named) -> list[Array]:
        d = p["cond"] - p["uncond"]
        return [p["uncond"], d, own * np.exp(-exponent(p)) * d]

    def wander(p: Named) -> Array:
        # e^-q moves by q times the relative error of q.
        q = exponent(p)
        return (
            abs(own)
            * np.where(np.isinf(q), 0.0, np.where(np.isinf(q), 0, q) * np.exp(-q))
            * abs(p["cond"] - p["uncond"])
        )

    return Case(name, rule, oracle, terms, wander)


APGS = (
    apg("APG", APG(7.5)),
    apg("APG_eta", APG(7.5, eta=0.0)),
    apg("APG_norm", APG(7.5, eta=0.25, norm_threshold=2.0)),
    apg("APG_norm_cond", APG(6.5, eta=0.0, norm_threshold=2.0, base="cond")),
    apg("APG_momentum", APG(7.5, eta=0.25, norm_threshold=15.0, momentum=-0.5)),
    apg("APG_momentum_cond", APG(6.5, eta=0.0, momentum=0.75, base="cond")),
    apg("APG_channels", APG(7.5, eta=0.0, norm_threshold=1.5, dims=(1,))),
    apg("APG_tokens", APG(7.5, eta=0.25, norm_threshold=1.5, momentum=-0.75, dims=(-1,))),
)
ZERO_STARS = (
    zero_star("CFGZeroStar", CFGZeroStar(7.5, zero_init_steps=0)),
    zero_star("CFGZeroStar_cond", CFGZeroStar(6.5, zero_init_steps=0, base="cond")),
)
TCFGS = (tcfg("TCFG", TCFG(7.5)), tcfg("TCFG_cond", TCFG(6.5, base="cond")))
_MAMBO = (mambo("MaMBOG", MaMBOG(7.5)), mambo("MaMBOG_cond", MaMBOG(6.5, alpha=0.7, base="cond")))
_MIX = replace(
    apg("APGMix", APG(10.0, eta=0.0, norm_threshold=2.0, momentum=-0.5)), rule=APGMix(norm_threshold=2.0, phase="apg")
)
PROJECTED = APGS + ZERO_STARS + TCFGS + _MAMBO + (_MIX,)


# --- Perturbed passes --------------------------------------------------------------------------------------------


def _by_deltas(name: str, rule: Rule, oracle: Callable[[Named], Array], weights: Mapping[str, float]) -> Case:
    """A case of known weights of the deltas from the rule's first prediction."""
    base = rule.lowered.predictions[0]
    return Case(
        name, rule, oracle, lambda p: [p[base], *(w * (p[n] - p[base]) for n, w in weights.items())],
        lambda p: np.zeros_like(p[base]),
    )  # fmt: skip


def _self_attention(p: Named) -> Array:
    guided = p["uncond"] + 7.5 * (p["cond"] - p["uncond"])
    return perturbed.self_attention_guidance(guided=guided, uncond=p["uncond"], perturbed=p["perturbed"], scale=0.75)


PERTURBED = (
    _by_deltas(
        "Autoguidance", Autoguidance(2.5), lambda p: perturbed.autoguidance(**p, scale=2.5), {"cond": 2.5}
    ),
    _by_deltas(
        "Autoguidance_cond", Autoguidance(1.5, base="cond"),
        lambda p: perturbed.autoguidance(**p, scale=1.5, base="cond"), {"cond": 2.5},
    ),
    _by_deltas(
        "Perturbed", Perturbed(7.5, 2.8),
        lambda p: perturbed.perturbed_sum(**p, scale=7.5, perturbed_scale=2.8), {"cond": 10.3, "perturbed": -2.8},
    ),
    _by_deltas(
        "Perturbed_cond", Perturbed(6.5, 3.0, base="cond"),
        lambda p: perturbed.perturbed_sum(**p, scale=6.5, perturbed_scale=3.0, base="cond"),
        {"cond": 10.5, "perturbed": -3.0},
    ),
    _by_deltas("SelfAttentionGuidance", SelfAttentionGuidance(7.5, 0.75), _self_attention,
               {"cond": 7.5, "perturbed": -0.75}),
    _by_deltas(
        "LTX2", LTX2(3.0, 1.5, 2.5),
        lambda p: perturbed.ltx2(**p, scale=3.0, perturbed_scale=1.5, modality_scale=2.5),
        {"uncond": -2.0, "perturbed": -1.5, "modality": -1.5},
    ),
)  # fmt: skip


# --- Caches ------------------------------------------------------------------------------------------------------

_REFRESH = Carried(
    "GatedCFG_refresh", GatedCFG(7.5, phase="refresh"), BY_NAME["CFG"].oracle, BY_NAME["CFG"].terms, _nothing,
    writes={"delta": lambda p: [p["cond"] - p["uncond"]]},
)  # fmt: skip
_REUSE = Carried(
    "GatedCFG_reuse", GatedCFG(7.5, phase="reuse"),
    lambda p: nonlinear.gated_guidance(cond=p["cond"], cached_delta=p["delta"], scale=7.5),
    lambda p: [p["cond"], 6.5 * p["delta"]], _nothing, reads=("delta",),
)  # fmt: skip
_RESIDUAL = Carried(
    "ResidualCFG", ResidualCFG(1.5, 0.8),
    lambda p: nonlinear.residual_cfg(cond=p["cond"], stock=p["stock"], scale=1.5, delta=0.8),
    lambda p: [1.5 * p["cond"], -0.5 * 0.8 * p["stock"]], _nothing, reads=("stock",),
)  # fmt: skip
CACHED = (_REFRESH, _REUSE, _RESIDUAL)


# --- Norm caps ---------------------------------------------------------------------------------------------------


def capped(case: Case, **options: object) -> Case:
    """A norm cap on top of a case; ``options`` are :class:`NormCap`'s."""
    rule = NormCap(case.rule, **options)
    dims: Dims = {"sample": None, "token": -1, "channel": 1}[rule.over]

    def oracle(p: Named) -> Array:
        return rescale.norm_cap(
            guided=case.oracle(p), cond=p[rule.reference], cap=rule.cap, mode=rule.mode, low=rule.low, eps=rule.eps,
            dims=dims,
        )  # fmt: skip

    def factors(p: Named) -> tuple[Array, Array, Array]:
        y = case.oracle(p)
        length = norm(y, dims)
        q = np.where(length + rule.eps == 0, 1.0, rule.cap * ratio(norm(p[rule.reference], dims), length + rule.eps, 1))
        factor = {
            "cap": np.minimum(q, 1.0),
            "full": q,
            "clamp": np.minimum(np.maximum(q, rule.low), 1.0),
        }[rule.mode]
        return factor, np.minimum(q, 1.0) if rule.mode != "full" else q, length

    def wander(p: Named) -> Array:
        # As for a rescale. A bound on q lets through no more than the error of q itself.
        factor, share, length = factors(p)
        loss = ratio(sum(norm(t, dims) for t in case.terms(p)), length, 1.0) ** 2
        inner = case.wander(p)
        moved = ratio(norm(inner, dims), length, 0.0)
        return factor * inner + share * abs(case.oracle(p)) * (0.5 * (loss + 1) + moved)

    label = "_".join(str(v) for v in (rule.mode, rule.over))
    terms = lambda p: [factors(p)[0] * t for t in case.terms(p)]  # noqa: E731
    if isinstance(case, Carried):
        return Carried(f"{case.name}+{label}", rule, oracle, terms, wander, case.reads, case.writes)
    return Case(f"{case.name}+{label}", rule, oracle, terms, wander)


_CFG = BY_NAME["CFG"]
_MODES: tuple[dict[str, object], ...] = (
    {"mode": "cap", "cap": 1.2},
    {"mode": "full"},
    {"mode": "clamp", "low": 0.4, "eps": 1e-8},
)
CAPPED = tuple(capped(_CFG, over=over, **mode) for mode in _MODES for over in ("sample", "token", "channel"))
BY_FIELD_NAME = {case.name: case for case in (*PROJECTED, *PERTURBED, *CACHED, *CAPPED)}
_APG = BY_FIELD_NAME["APG_norm"]
COMPOSED = (
    rescaled(_APG, "std", 0.7),
    rescaled(BY_FIELD_NAME["CFGZeroStar"], "l2", 0.5),
    capped(BY_FIELD_NAME["TCFG"], mode="cap", cap=0.9),
    capped(BY_FIELD_NAME["CFGZeroStar_cond"], mode="full"),
    capped(BY_FIELD_NAME["Perturbed"], mode="cap", over="token"),
    capped(BY_FIELD_NAME["APG_tokens"], mode="clamp", low=0.2, over="token"),
    clamped(rescaled(_APG, "std", 0.7), 2.0),
    clamped(rescaled(BY_FIELD_NAME["MaMBOG"], "std", 0.5), 1.5),
    rescaled(BY_FIELD_NAME["LTX2"], "std", 0.7),
    rescaled(BY_FIELD_NAME["Autoguidance"], "std", 0.7),
    clamped(capped(BY_FIELD_NAME["TCFG"], mode="cap"), 2.0),
)
FIELD: tuple[Case, ...] = PROJECTED + PERTURBED + CACHED + CAPPED + COMPOSED


# --- Running -----------------------------------------------------------------------------------------------------


def shape_of(case: Case) -> tuple[int, ...]:
    """A shape that the rule's dims suit."""
    dims = case.rule.lowered.dims
    return SHAPE if dims is None else {(-1,): TOKENS, (1,): PIXELS}[dims]


def grouped(case: Case) -> bool:
    """Whether its sums run over tokens or channels."""
    return case.rule.lowered.dims is not None


def draw_all(case: Case, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Predictions, and tensors of the state in the accumulator's dtype."""
    predictions = draw(case, shape, dtype, seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    reads = case.reads if isinstance(case, Carried) else ()
    rng = np.random.default_rng([seed, 77, *shape])
    return predictions | {name: torch.from_numpy(0.5 * rng.normal(size=shape)).to(acc) for name in reads}


def run_with_state(
    rule: Rule, predictions: Mapping[str, torch.Tensor], state: State, path: str, **kwargs: object
) -> torch.Tensor:
    """Guide by ``path``, which may be a launch strategy of Triton, reading and writing ``state``."""
    if path not in ("row", "two_launch"):
        return guide(rule, state=state, backend=path, **predictions, **kwargs)
    lowered = rule.lowered
    inputs = [predictions[name] for name in lowered.predictions]
    first = inputs[0]
    acc = torch.float64 if first.dtype == torch.float64 else torch.float32
    extras = [state[n] if n in state else torch.zeros_like(first, dtype=acc) for n in lowered.extras]
    groups = None if lowered.dims is None else Groups(first.shape, lowered.dims)
    if groups is not None:
        inputs, extras = [groups.rows(t) for t in inputs], [groups.rows(t) for t in extras]
    params = {name: lowered.params[name] for name in lowered.program.params}
    results = fk.guide_outputs(inputs, lowered.program, params, extras=extras, backend="triton", strategy=path)
    if groups is not None:
        results = [groups.back(r) for r in results]
    for name, result in zip(lowered.updates, results[1:], strict=True):
        state[name] = result
    return results[0]


def check(case: Case, path: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> float:
    """One call beside the oracle, its new state too; the error in units of the ideal rounding."""
    tensors = draw_all(case, shape, dtype, seed)
    reads = case.reads if isinstance(case, Carried) else ()
    state = State({name: tensors[name].clone() for name in reads})
    predictions = {name: tensors[name] for name in case.conditions}
    kept = {name: p.clone() for name, p in tensors.items()}
    actual = run_with_state(case.rule, predictions, state, path)
    assert actual.dtype == dtype and actual.shape == shape
    assert all(torch.equal(p, kept[name]) for name, p in tensors.items()), "an input was written"
    given = exact(tensors)
    if isinstance(case, Carried):
        assert set(state) == set(case.reads) | set(case.writes)
        for name, terms in case.writes.items():
            check_update(state[name], terms(given), sum(abs(p) for p in given.values()), dtype)
    truncates = path in ("row", "two_launch") and dtype == torch.bfloat16 and not torch.cuda.is_available()
    return check_error(case, actual, given, truncates=truncates)


def check_update(actual: torch.Tensor, terms: list[Array], magnitude: Array, dtype: torch.dtype) -> None:
    """A tensor of the state beside the sum that it should be: its terms' roundings and its store's."""
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = sum(terms)
    error = abs(actual.double().numpy() - expected)
    unit = EPSILON[dtype]
    assert (error <= 0.5 * ulp(expected, actual.dtype) + (len(terms) + 2) * unit * magnitude).all(), error.max()


def check_rows(case: Case, path: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each sample of a batch has the bits that it has alone, in the result and in the state."""
    tensors = draw_all(case, (8, *shape[1:]), dtype)
    reads = case.reads if isinstance(case, Carried) else ()

    def call(rows: slice) -> tuple[torch.Tensor, State]:
        state = State({name: tensors[name][rows].clone() for name in reads})
        predictions = {name: tensors[name][rows].clone() for name in case.conditions}
        return run_with_state(case.rule, predictions, state, path), state

    whole, memory = call(slice(0, 8))
    assert whole.isfinite().all()
    for b in range(8):
        alone, own = call(slice(b, b + 1))
        assert torch.equal(alone, whole[b : b + 1]), f"sample {b}"
        assert all(torch.equal(own[name], memory[name][b : b + 1]) for name in own), f"state of sample {b}"
