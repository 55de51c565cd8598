"""What an operator decides about waiting."""

from dataclasses import dataclass

from koinon.core.errors import AdmissionError


@dataclass(frozen=True)
class Settings:
    """How a server waits for its nodes; see `koinon.protocol.state.Terms` for the meaning of each.

    Raises:
        AdmissionError: if a value is out of its bounds.
    """

    minimum_nodes: int = 2
    over_selection: float = 0.0
    quorum: float = 0.5
    deadline_s: float = 600.0
    silence_s: float = 45.0

    def __post_init__(self) -> None:
        if self.minimum_nodes < 1:
            raise AdmissionError(f"a round needs at least one node, not {self.minimum_nodes}; set --min-nodes")
        if not 0 < self.quorum <= 1:
            raise AdmissionError(f"the quorum is a share of the cohort in (0, 1], not {self.quorum}; set --quorum")
        if self.over_selection < 0:
            raise AdmissionError(f"over-selection is a share >= 0, not {self.over_selection}; set --over-select")
        if not (self.deadline_s > 0 and self.silence_s > 0):
            raise AdmissionError("the deadline and the silence are seconds > 0; set --deadline and --silence")
