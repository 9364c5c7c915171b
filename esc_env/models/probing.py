"""What is found out about a model of `open_model` by asking it."""

from __future__ import annotations

from esc_env.errors import BadCompletion, ModelError, SpecError
from esc_env.models.cassette import Cassette
from esc_env.models.opening import Opened
from esc_env.protocols import ChatModel, Request

__all__ = ["PROBE", "check_model", "effective"]


def effective(model: object) -> dict[str, str]:
    """How a model of `open_model` is asked, where its server takes a request otherwise than plain; {} for any other.

    What a server does not take is found out by asking it, so this holds more after the first call.
    """
    spoken = model.spoken if isinstance(model, Opened) else None
    if spoken is None:
        return {}
    choices = {"n": f"at most {spoken.most[0]} a request"} if spoken.most else {}
    return choices | spoken.dialect.effective


PROBE = Request(
    (
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Say OK."},
        {"role": "assistant", "content": "OK."},
        {"role": "user", "content": "Say it again."},
    )
)
"""What a model is asked before a run: a chat of the shape that supporters hand over, in few words."""


async def check_model(model: ChatModel, chair: str = "model", request: Request = PROBE) -> None:
    """Send a model a tiny request with the parameters of the run, so that what it refuses is known before a run.

    A model that only replays, or that is not one of `open_model`, is asked nothing. What a cassette holds is not used.

    Args:
        model: any.
        chair: `agent`, `seeker` or `critic`: named in the message.
        request: `PROBE` with what the chair will ask for besides.

    Raises:
        SpecError: it does not take the temperature, or gives no log-probabilities; the message names the option.
        ModelError: it does not answer; the message is one line that names the chair and what to set.
    """
    known = model.model if isinstance(model, Opened) else None
    if isinstance(known, Cassette):
        known = known.model
    if known is None:
        return
    try:
        answer = await known.complete(request)
    except BadCompletion:
        return  # it answers; what it says is nobody's concern yet
    except ModelError as error:
        if error.status in (400, 422) and "temperature" in error.told.casefold():
            option = "temperature" if chair == "agent" else f"{chair}_temperature"
            raise SpecError(
                f"{chair}: {error}. Give a temperature that it takes with --{option.replace('_', '-')} ({option}=…), "
                "or name another model"
            ) from error
        if request.logprobs and error.status in (400, 422) and "logprob" in error.told.casefold():
            raise SpecError(f"{chair}: {error}. {_NO_LOGPROBS}") from error
        silent = error.retryable and error.status is None
        error.args = (f"{chair}: {error}{'. Is the network up, and does the server run?' if silent else ''}",)
        raise
    if request.logprobs and not (answer.logprobs and answer.logprobs[0]):
        name = "/".join(str(model.identity.get(key, "")) for key in ("provider", "name"))
        raise SpecError(f"{chair}: {name} gives no log-probabilities. {_NO_LOGPROBS}")


_NO_LOGPROBS = "Use --critic-mode votes (critic_mode='votes'), or name another model"
