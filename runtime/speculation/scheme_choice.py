"""From the name of a verification scheme to the scheme."""

from collections.abc import Callable, Mapping

from runtime.sampling_params import SamplingParams
from runtime.speculation.coupled import Coupled
from runtime.speculation.fixed_and_drawn import FixedAndDrawn
from runtime.speculation.greedy import Greedy
from runtime.speculation.scheme import Scheme
from runtime.speculation.sequoia import Sequoia
from runtime.speculation.specinfer import SpecInfer
from runtime.speculation.top_k_match import TopKMatch

SCHEMES: Mapping[str, Callable[[SamplingParams], Scheme]] = {
    Greedy.name: lambda _: Greedy(),
    Sequoia.name: lambda _: Sequoia(),
    Coupled.name: lambda params: Coupled(params.seed),
    FixedAndDrawn.name: lambda _: FixedAndDrawn(),
    SpecInfer.name: lambda _: SpecInfer(),
    TopKMatch.name: lambda _: TopKMatch(),
}
"""How each scheme is made for one answer."""


def scheme_for(params: SamplingParams) -> Scheme:
    """The scheme that one answer is to be verified with, see `SamplingParams.scheme_name`."""
    return SCHEMES[params.scheme_name](params)
