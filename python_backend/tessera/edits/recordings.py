"""What is recorded for an edit before it is denoised: what is there, and what is wanted.

Knows the template store, nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessera.codec.text import Embeddings
from tessera.contract import EditQuality
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.edits.quality import Policies
from tessera.errors import Unavailable
from tessera.manifest import Manifest
from tessera.plan import Plan
from tessera.requests.edit import EditChoice
from tessera.templates.nearest import Chosen, Nearness, choose
from tessera.templates.store import RecordingKey, TemplateStore


class EditRecordings:
    """The recordings of edits.

    Args:
        store: has them.
        manifest: of the bundle.
        policies: what edits do for their quality.
        log: takes a sentence for the server's log.
    """

    def __init__(
        self,
        store: TemplateStore,
        manifest: Manifest,
        policies: Policies,
        log: Callable[[str], None],
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._policies = policies
        self._log = log

    def look_up(
        self, edit: EditChoice, plan: Plan, texts: Sequence[str], embeddings: Embeddings
    ) -> bool:
        """Whether the template has been recorded for an edit. What is not is noted, unless the edit
        waits for it: the recordings with its prompts, or for `fast` and for several prompts that
        with the empty one, which serves them all. Nothing is noted where that would not: no policy
        reaches the quality with it.

        Args:
            edit: the edit.
            plan: its plan.
            texts: of its branches, see `tessera.templates.texts.text_id`.
            embeddings: of its branches.

        Raises:
            Unavailable: the edit would wait for a recording, and what this needs cannot be written.
        """
        if edit.mode == "dense" or not self._manifest.can_be_sparse:
            return False
        key = RecordingKey.of_plan(self._manifest.digest, plan, TEMPLATE_SEED)
        fast = edit.quality == EditQuality.FAST
        one = fast or plan.prompt_count > 1
        hidden = {"encoder_hidden_states": embeddings.hidden}
        chosen = choose(self._store, key, texts, hidden, plain=fast, guided=plan.guided)
        if chosen is not None and not self._serves(edit, plan, chosen.nearness, one=one):
            chosen = None
        if chosen is not None:
            self._read_ahead(chosen)
        if chosen is None or (chosen.nearness == Nearness.EMPTY and not one):
            wanted = ("",) if one else texts
            if one and not self._serves(edit, plan, Nearness.EMPTY, one=one):
                wanted = ()
            self._want(edit, key, wanted, embeddings, waits=chosen is None)
        return chosen is not None

    def _serves(self, edit: EditChoice, plan: Plan, nearness: Nearness, *, one: bool) -> bool:
        """Whether an edit takes recordings: they give it its quality, or MODE `sparse` asks for the
        `one` that several prompts share, whatever it gives.
        """
        adapted = bool(plan.adapters)
        found = self._policies.of(edit.quality, nearness, edit.mask_ratio, adapted=adapted)
        return bool(found) or (one and edit.mode == "sparse")

    def _read_ahead(self, chosen: Chosen) -> None:
        for recording in chosen.recordings:
            kept = recording.storage.kept(recording.key.evaluations)
            self._store.read_ahead(recording, kept)

    def _want(
        self,
        edit: EditChoice,
        key: RecordingKey,
        texts: Sequence[str],
        embeddings: Embeddings,
        *,
        waits: bool,
    ) -> None:
        """Leave what the recordings of an edit need, and a note of each that nobody waits for. They
        have none of its ControlNets, whose images are another edit's seldom.
        """
        waits = waits and edit.mode == "sparse"
        keys = [key.with_controls(()).with_text(text) for text in texts]
        missing = [own for own in keys if not waits and self._store.find(own) is None]
        branches = list(zip(keys, embeddings.hidden, embeddings.pooled, strict=False))

        image = edit.image.copy()  # a write that stalls outlives the request, whose memory it is

        def write() -> bool:
            """Put picture, texts and notes there; for `patiently`, which wants something back."""
            self._store.keep(image)
            # The latest note is recorded first: the negative prompt's, which serves most edits.
            for own, hidden, pooled in reversed(branches):
                if own.text:
                    self._store.texts.put(own.digest, {"hidden": hidden, "pooled": pooled})
                if own in missing:
                    self._store.notes.put(own)
            return True

        try:
            problem = "" if self._store.patiently(write) else "its storage does not answer"
        except OSError as error:
            problem = error.strerror or str(error)
        if problem and waits:
            raise Unavailable(f"template {edit.template} cannot be kept: {problem}")
        if problem:
            self._log(f"template {edit.template} cannot be kept: {problem}")
