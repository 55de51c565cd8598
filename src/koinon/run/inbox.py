"""What a node is being sent: a model, or what leads to it from the one that it holds."""

from koinon.durable import checkpoint
from koinon.durable.journal import Journal
from koinon.federation import Federation
from koinon.protocol.messages import Blob, Chunk, Delta
from koinon.protocol.node import Connected, Download, Downloaded
from koinon.run.work import changed


class Inbox:
    """Receives one model at a time, into the journal.

    Args:
        federation: The definition on the node's own disk.
        seed: The run's.
        journal: Where models lie.
        examples: How many examples the node says that it trains on.
    """

    def __init__(self, federation: Federation, seed: int, journal: Journal, examples: int) -> None:
        self._federation = federation
        self._seed = seed
        self._journal = journal
        self._examples = examples
        self._whole: Blob | None = None
        self._patch: _Patch | None = None

    def holding(self) -> Connected:
        """What is here."""
        return Connected(*self._journal.holding(), self._examples)

    def begin(self, wanted: Download) -> Downloaded | Connected | None:
        """Expect a model's chunks, or its deltas'. The answer to the protocol if there is one at once.

        Raises:
            Unavailable: as the journal.
        """
        self._whole = self._patch = None
        held = self._journal.holding()
        if wanted.deltas and held != (wanted.model.digest, wanted.model.size):
            if held != (wanted.deltas[0].base, wanted.model.size) or not self._sensible(wanted):
                return self.holding()
            self._patch = _Patch(wanted.model, wanted.deltas)
            return None
        if self._journal.expect(wanted.model):
            return Downloaded(wanted.model.digest)
        self._whole = wanted.model
        return None

    def take(self, chunk: Chunk) -> Downloaded | Connected | None:
        """A chunk came; the answer to the protocol when the model is here, or cannot be made.

        Raises:
            Unavailable: as the journal.
        """
        if self._whole is not None and self._journal.write(self._whole, chunk):
            whole, self._whole = self._whole, None
            return Downloaded(whole.digest)
        if self._patch is not None and self._patch.take(chunk):
            patch, self._patch = self._patch, None
            return self._patched(patch)
        return None

    def _sensible(self, wanted: Download) -> bool:
        """Whether these deltas can be what this definition's codec makes, and take no more memory than the model."""
        codec, layout = self._federation.strategy.downlink, self._federation.learner.layout
        sizes = [delta.change.size for delta in wanted.deltas]
        possible = codec is not None and max(sizes) <= codec.most(layout)
        return possible and sum(sizes) < wanted.model.size == 4 * layout.length

    def _patched(self, patch: "_Patch") -> Downloaded | Connected:
        """Make the model. What does not lead to it is dropped with its base, or the server would send it again."""
        model = self._journal.model(patch.deltas[0].base)
        try:
            for delta, change in zip(patch.deltas, patch.received, strict=True):
                model = changed(self._federation, self._seed, delta.round, model, change)
            if checkpoint.digest(model) == patch.model.digest:
                self._journal.put(patch.model, model)
                return Downloaded(patch.model.digest)
        except ValueError:
            pass
        self._journal.forget_models()
        return self.holding()


class _Patch:
    """Deltas on their way: each as many bytes as were announced, one after the other."""

    def __init__(self, model: Blob, deltas: tuple[Delta, ...]) -> None:
        self.model = model
        self.deltas = deltas
        self.received = [bytearray()]

    def take(self, chunk: Chunk) -> bool:
        """Take the next piece; whether all are here. Pieces that are not the next are ignored."""
        change, received = self.deltas[len(self.received) - 1].change, self.received[-1]
        if chunk.digest != change.digest or chunk.offset != len(received):
            return False
        received += chunk.data[: change.size - len(received)]
        if len(received) < change.size:
            return False
        if len(self.received) == len(self.deltas):
            return True
        self.received.append(bytearray())
        return False
