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
        with the empty one, which serves them all.

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
        if chosen is not None and not one and not self._reaches(edit, plan, chosen):
            chosen = None
        if chosen is not None:
            self._read_ahead(chosen)
        if chosen is None or (chosen.nearness == Nearness.EMPTY and not one):
            self._want(edit, key, ("",) if one else texts, embeddings, waits=chosen is None)
        return chosen is not None

    def _reaches(self, edit: EditChoice, plan: Plan, chosen: Chosen) -> bool:
        """Whether recordings give the edit its quality."""
        adapted = bool(plan.adapters)
        ratio = edit.mask_ratio
        return bool(self._policies.of(edit.quality, chosen.nearness, ratio, adapted=adapted))

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
            self._store.keep(image)
            # The latest note is recorded first: the negative prompt's, which serves most edits.
            for own, hidden, pooled in reversed(branches):
                if own.text:
                    self._store.texts.put(own.digest, {"hidden": hidden, "pooled": pooled})
                if own in missing:
                    self._store.want(own)
            return True

        try:
            problem = "" if self._store.patiently(write) else "its storage does not answer"
        except OSError as error:
            problem = error.strerror or str(error)
        if problem and waits:
            raise Unavailable(f"template {edit.template} cannot be kept: {problem}")
        if problem:
            self._log(f"template {edit.template} cannot be kept: {problem}")
