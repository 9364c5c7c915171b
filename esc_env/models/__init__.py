"""Chat models behind any API, any OpenAI-compatible server, or in this process: from a string to a `ChatModel`.

    cassette ( budget ( choices ( patience ( dialect ( wire )))))

Each layer is a `ChatModel` around another: the *wire* makes one exchange, the *dialect* asks in another way where the
server wants that, *patience* retries it and keeps the endpoint's limits, *choices* makes n of it, the *budget* prices
and counts it, the *cassette* keeps or replays it.
Nothing here knows of scenarios, seekers or critics. Importing this package needs no extra; opening a model does.
"""

from esc_env.models.budget import Budget
from esc_env.models.capabilities import check_parameters
from esc_env.models.opening import open_model
from esc_env.models.options import Options, read_options
from esc_env.models.probing import PROBE, check_model, effective
from esc_env.models.settings import ModelOptions, ModelSettings, Wire

__all__ = [
    "PROBE", "Budget", "ModelOptions", "ModelSettings", "Options", "Wire", "check_model",
    "check_parameters", "effective", "open_model", "read_options",
]  # fmt: skip
