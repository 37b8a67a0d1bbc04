"""A model and its guidance as one callable, and how its passes are run: batched, skipped, captured, by request."""

from .automatic import Auto
from .batching import Padding
from .capture import CapturedStep
from .gates import Gate
from .guided import GuidedDenoiser
from .passes import Batched, Executor, Pass, Sequential
from .report import REASONS, PassReport
from .requests import Request, Requests
from .tuning import Trial, Tuning, fit_weights, gram_of, linear_weights, tune

__all__ = [
    "REASONS",
    "Auto",
    "Batched",
    "CapturedStep",
    "Executor",
    "Gate",
    "GuidedDenoiser",
    "Padding",
    "Pass",
    "PassReport",
    "Request",
    "Requests",
    "Sequential",
    "Trial",
    "Tuning",
    "fit_weights",
    "gram_of",
    "linear_weights",
    "tune",
]
