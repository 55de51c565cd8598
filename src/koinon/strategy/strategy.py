"""A strategy: everything about a federation but the model and the data."""

from dataclasses import dataclass, field

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.types import Spec
from koinon.learn.corrections import Correction
from koinon.server.optimizer import ServerOptimizer
from koinon.server.sampling import Everyone, Sampler
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain


@dataclass(frozen=True)
class Strategy:
    """A frozen composition; the functions in `recipes` make the usual ones.

    Attributes:
        name: What it is called.
        sample: Who takes part in a round.
        stages: What happens to an update on its way.
        codec: How it becomes bytes.
        reducer: How many updates become one.
        server: How the aggregated update changes the model.
        correction: What is added to local gradients, or None.

    Raises:
        AdmissionError: if the parts do not fit together.
    """

    name: str
    sample: Sampler = Everyone()
    stages: Chain = Chain()
    codec: Codec = Float32()
    reducer: Reducer = Mean()
    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    correction: Correction | None = None

    def __post_init__(self) -> None:
        self.admit()

    def admit(self) -> Spec:
        """What the server is given: the parts, checked against each other in the order of an update's way.

        Raises:
            AdmissionError: from the first part that does not fit, naming the cure.
        """
        spec = self.stages.admit(Spec())
        self.reducer.admit(spec)
        return self.codec.admit(spec)
