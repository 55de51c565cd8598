"""What a secure sum needs of the rest of a strategy."""

from dataclasses import replace

from koinon.aggregate.filtering import FoolsGold
from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Deciding, Reducer, Watching
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec
from koinon.secure.secure_sum import SecureSum
from koinon.server.sampling import Everyone, RoundRobin, Sampler, Uniform
from koinon.update.codec import Codec, Float32
from koinon.update.noise import SkellamNoise
from koinon.update.stage import Chain

_MANY = 100
"""Numbers of clients that are tried, from the fewest on: where none of them will do, the shares are too large for any."""


def seen(secure: SecureSum | None, spec: Spec) -> Spec:
    """What a rule is given: updates, or nothing of a single one, or the means of groups."""
    if secure is None or secure.group_size is None:
        return replace(spec, visible=spec.visible and secure is None)
    return replace(spec, cohort=None if spec.cohort is None else spec.cohort // secure.group_size)


def within(stages: Chain) -> SkellamNoise | None:
    """The noise that clients add within the sum, if any."""
    return next((stage for stage in stages.stages if isinstance(stage, SkellamNoise)), None)


def needs_secure(stages: Chain) -> None:
    """Raise AdmissionError if noise is to be added within a secure sum, and there is none."""
    if within(stages) is not None:
        raise AdmissionError(
            "SkellamNoise is added within a secure sum; give secure=SecureSum(clip=…), or use GaussianNoise, which the server adds"
        )


def check_secure(secure: SecureSum, spec: Spec, sample: Sampler, codec: Codec, reducer: Reducer) -> None:
    """Whether updates of such a spec can be added up secretly.

    Raises:
        AdmissionError: naming the cure.
    """
    if not isinstance(secure, SecureSum):
        raise AdmissionError(
            f"a strategy adds up by SecureSum, and {type(secure).__name__} runs by kn.secure.run_locally only"
        )
    if secure.tallies or secure.noise:
        raise AdmissionError(
            "what is counted beside updates follows from the learner, and noise from SkellamNoise; give SecureSum no tallies and no noise"
        )
    if not isinstance(codec, Float32):
        raise AdmissionError(
            f"SecureSum encodes updates itself, so {type(codec).__name__} cannot; leave codec= out and choose bits="
        )
    if not isinstance(sample, Everyone | Uniform | RoundRobin):
        raise AdmissionError(
            f"{type(sample).__name__} may draw too few to be added up, or counts on nobody knowing who takes part, and in a "
            "SecureSum all know each other; sample by Uniform(count), RoundRobin(count) or Everyone()"
        )
    if spec.weight_bound is None:
        raise AdmissionError(
            "a SecureSum must know the largest weight; give stages=(…, Weight(at_most=examples)), or no Weight for an equal say"
        )
    if spec.tally is not None:
        raise AdmissionError("AdaptiveClip's count is no coordinate of a SecureSum; use a clip of fixed norm")
    if not isinstance(reducer, Mean) and _remembers_clients(reducer):
        raise AdmissionError(
            f"{type(reducer).__name__} remembers clients from round to round, and the groups of a SecureSum are drawn anew; use a "
            "rule that looks at one round, such as Median() or TrimmedMean(f)"
        )


def fewest(scheme: SecureSum, updates: int) -> int:
    """Clients without whom no round can be added up, in as many groups as the rule needs updates.

    Raises:
        AdmissionError: if no number will do.
    """
    least = scheme.minimum if scheme.group_size is None else scheme.group_size * updates
    for clients in range(least, least + _MANY):
        try:
            scheme.admit(clients)
        except AdmissionError:
            continue
        return clients
    raise AdmissionError("no number of clients can be added up with these shares of corrupt clients and dropouts")


def _remembers_clients(reducer: object) -> bool:
    """Whether a rule, or one that it leaves updates to, is about who sent what in earlier rounds."""
    if isinstance(reducer, Watching | Deciding | FoolsGold):
        return True
    then = getattr(reducer, "then", None)
    return then is not None and _remembers_clients(then)
