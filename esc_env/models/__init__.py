"""Chat models behind any API, any OpenAI-compatible server, or in this process: from a string to a `ChatModel`.

    cassette ( budget ( choices ( patience ( dialect ( wire )))))

Each layer is a `ChatModel` around another: the *wire* sends one request and reads the answer, the *dialect* changes the
form of the request where the server wants another, *patience* retries and keeps the server's rate limits, *choices*
sees to it that n answers come back, the *budget* counts and prices them, the *cassette* records or replays them.
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
