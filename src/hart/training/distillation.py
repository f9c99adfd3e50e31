"""Context distillation: a system learns the answers of a teacher that reads the task in its own input (ours).

The teacher reads definition, demonstrations and query, as `InputFormat.encode_in_context` writes them. The student's
main model reads the query alone and gets the rest from the hypernetwork. Both predict the same target tokens. The loss
adds to L_pred KL(teacher ‖ student) of the next token, with logits divided by a temperature T and the sum multiplied
by T², which keeps the size of the gradients (Hinton et al. 2015). If teacher and student have the same weights, it can
add the L1 distance of their hidden states divided by the L1 norm of the teacher's (deep distillation, Knowledge
Modules).

The teacher is frozen and has no dropout, so its output depends only on the batch, in any layout of processes and after
any resumption. It is not part of the module that processes wrap and divide.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from hart.data.collate import IGNORED_LABEL, Collator
from hart.data.input_format import InputFormat
from hart.data.sampling import Examples
from hart.errors import HartError
from hart.model.folder import MODEL_TYPES, model_type_of
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.model.modes import evaluating
from hart.peft.injection import Binding, Site, binding
from hart.peft.modules import layers
from hart.runtime.fingerprints import tokenizer_digest
from hart.runtime.identity import peft_digest
from hart.training.config import BASE_TEACHER, DistillationConfig, RunConfig
from hart.training.losses import prediction_loss
from hart.training.teacher_cache import Said, TeacherCache, key_of

logger = logging.getLogger(__name__)

SAMPLE = 32
"""Number of training examples, from the first, that compare the teacher with the un-adapted base before training."""

_FIELD = "distillation.teacher"


class Distillation:
    """The teacher of a run, and the weights of the losses.

    Args:
        config: a configuration that names a teacher.
        student: the system that is trained.
        teacher: the system to learn from; with the teacher `base` it shares the main model of the student.
        bf16: whether passes compute in bfloat16; a cache keeps outputs of each precision separately.

    Raises:
        HartError: the teacher reads no demonstrations in its own input, its tokenizer or vocabulary differs from the
            student's, it has fewer positions than its longest input, or the cache is damaged.
    """

    def __init__(
        self, config: DistillationConfig, student: HartModel, teacher: HartModel, *, bf16: bool = False
    ) -> None:
        self._config, self._student, self._teacher = config, student, teacher
        self._name = str(config.teacher)
        self._cache: TeacherCache | None = None
        _check_reads(self._name, teacher)
        _check_tokens(self._name, teacher.main, student.main)
        _check_room(self._name, teacher, student.input_format)
        if config.cache is not None:
            about = {
                "teacher": self.fingerprint,
                "temperature": str(config.temperature),
                "top_k": str(config.top_k),
                "precision": f"{teacher.main.model.dtype}, {'bf16' if bf16 else 'float32'}",
            }
            self._cache = TeacherCache(Path(config.cache), about)

    @property
    def form(self) -> InputFormat:
        """The input format of the teacher."""
        return self._teacher.input_format

    @property
    def fingerprint(self) -> str:
        """Identity of the teacher: the fingerprint of its main model and a digest of its learned parameters."""
        teacher = self._teacher
        return f"{teacher.main.fingerprint}-{peft_digest(teacher.peft_source)[:16]}"

    def place(self, device: torch.device, *, divided: bool) -> None:
        """Put the teacher on the device of this process.

        Args:
            divided: whether the processes divide the weights of the student's main model.

        Raises:
            HartError: the divided main model is also the teacher; its weights are complete only in the student's pass.
        """
        if self._teacher.main is not self._student.main:
            self._teacher.to(device)
        elif divided:
            raise HartError(
                f"{_FIELD}: base is divided among the processes (FSDP, ZeRO-3); use ZeRO-1 or 2, or name its own folder"
            )

    def lesson(self, batch: dict[str, Tensor]) -> "Lesson":
        """The teacher's output for a batch. Removes `teacher_ids` and `teacher_mask` from the batch."""
        ids, mask, labels = batch.pop("teacher_ids"), batch.pop("teacher_mask"), batch["labels"]
        hidden = _Hidden(self._teacher.main, labels) if self._config.hidden_weight else None
        if self._cache is not None:
            said = self._remembered(self._cache, ids, mask, labels)
        else:
            said = self._say(ids, mask, labels, hidden)
        students = _Hidden(self._student.main, labels) if hidden else None
        return Lesson(said, temperature=self._config.temperature, hidden=hidden, students=students)

    @torch.no_grad()
    def _say(self, ids: Tensor, mask: Tensor, labels: Tensor, hidden: "_Hidden | None" = None) -> Said:
        with evaluating(self._teacher.main), _watching(hidden):
            logits = self._teacher(ids, mask, labels).logits
        return what_is_said(logits, labels, self._config.temperature, self._config.top_k)

    def _remembered(self, cache: TeacherCache, ids: Tensor, mask: Tensor, labels: Tensor) -> Said:
        """The teacher's output from the cache; the teacher runs only on the rows that are missing there."""
        targets = labels != IGNORED_LABEL
        rows = zip(*(each.tolist() for each in (ids, mask.bool(), labels, targets)), strict=True)
        keys = [
            key_of(*([i for i, counts in zip(*each, strict=True) if counts] for each in ((row, kept), (own, wanted))))
            for row, kept, own, wanted in rows
        ]
        new = [row for row, key in enumerate(keys) if key not in cache]
        if new:
            said = self._say(ids[new], mask[new], labels[new])
            for row, part in zip(new, said.parts(targets[new].sum(1).tolist()), strict=True):
                cache.add(keys[row], part)
        found = Said.joined([cache.get(key) for key in keys], labels.device)
        if cache.is_full:  # flushed only between batches: a resumed run reads whole batches again
            cache.flush()
        return found

    def flush(self) -> None:
        """Write the cache's new entries to disk.

        Raises:
            HartError: the disk is full, or the folder cannot be written.
        """
        if self._cache is not None:
            self._cache.flush()

    def weighted(self, prediction: Tensor, taught: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of L_pred and the losses of `Lesson.losses`, over the target tokens."""
        loss = self._config.cross_entropy * prediction + self._config.weight * taught["distillation_loss"]
        if "hidden_loss" in taught:
            loss = loss + self._config.hidden_weight * taught["hidden_loss"]
        return loss

    @torch.no_grad()
    def warn_if_worse(self, dataset: Examples, collator: Collator, batch_size: int) -> None:
        """Warn if the teacher has a higher cross entropy than the un-adapted base on the first `SAMPLE` examples.

        Args:
            batch_size: examples per pass; a multiple of the number of queries that share demonstrations.
        """
        sums, tokens, count = [0.0, 0.0], 0, min(SAMPLE, len(dataset))
        main = self._student.main
        with evaluating(main, self._teacher.main):
            for start in range(0, count, batch_size):
                made = collator([dataset[i] for i in range(start, min(start + batch_size, count))])
                batch = {name: values.to(main.device) for name, values in made.items()}
                labels = batch["labels"]
                said = (
                    self._teacher(batch["teacher_ids"], batch["teacher_mask"], labels).logits,
                    main(batch["query_ids"], batch["query_mask"], labels).logits,
                )
                for at, logits in enumerate(said):
                    sums[at] += float(prediction_loss(logits, labels)[0])
                tokens += int((labels != IGNORED_LABEL).sum())
        teacher, base = (each / tokens for each in sums)
        if teacher > base:
            logger.warning(
                "%s: %s has a cross entropy of %.3f nats per target token on the first %d training examples, and the "
                "base without demonstrations %.3f: there may be nothing to learn from it",
                *(_FIELD, self._name, teacher, count, base),
            )


class Lesson:
    """The teacher's output for one batch, with which the student's is compared.

    Args:
        said: the teacher's distributions over the target tokens.
        temperature: temperature of these distributions.
        hidden, students: hidden states of the teacher, already recorded, and a recorder for those of the student;
            None: hidden states are not compared.
    """

    def __init__(
        self,
        said: Said,
        *,
        temperature: float,
        hidden: "_Hidden | None" = None,
        students: "_Hidden | None" = None,
    ) -> None:
        self._said, self._temperature = said, temperature
        self._hidden, self._students = hidden, students

    def watching(self) -> AbstractContextManager[None]:
        """Context for the student's pass over the batch, which records its hidden states if they are compared."""
        return _watching(self._students)

    def losses(self, logits: Float[Tensor, "b u v"], labels: Int[Tensor, "b u"]) -> dict[str, Tensor]:
        """Losses summed over target tokens, float32: `distillation_loss`, and `hidden_loss` if states are compared."""
        found = {"distillation_loss": divergence(logits, self._said, labels, self._temperature)}
        if self._hidden is not None and self._students is not None:
            found["hidden_loss"] = hidden_loss(self._students.stacked(), self._hidden.stacked(), labels)
        return found


def make_distillation(config: RunConfig, student: HartModel) -> Distillation | None:
    """Load the teacher that a configuration names; None if it names none.

    Args:
        student: the system that this configuration trains.

    Raises:
        HartError: the teacher cannot be loaded, or as `Distillation`.
    """
    name, model = config.distillation.teacher, config.model
    if name is None:
        return None
    in_context = replace(
        student.input_format,
        demonstrations_to="main",
        num_demonstrations=student.input_format.most_demonstrations,
        demonstration_groups=1,
    )
    if name == BASE_TEACHER:
        if not student.main.shape.has_encoder:  # it was never trained to answer after an end of sequence
            in_context = replace(in_context, input_eos=False)
        teacher = HartModel(student.main, None, fusion=False, input_format=in_context)
    else:
        try:
            teacher = _load(name, in_context, dtype=model.dtype, attention=model.attention)
        except HartError as error:
            raise HartError(f"{_FIELD}: {error}") from None
    return Distillation(config.distillation, student, teacher, bf16=config.training.bf16)


def _load(name: str, in_context: InputFormat, **options: Any) -> HartModel:
    """Load a saved system, with the format of its training, or a plain checkpoint, with the format `in_context`."""
    found = model_type_of(name)
    if found is not None and found not in MODEL_TYPES:
        main = MainModel.from_pretrained(name, **options)
        return HartModel(main, None, fusion=False, input_format=in_context, name=name).eval()
    return HartModel.from_pretrained(name, **options)


def what_is_said(
    teacher: Float[Tensor, "b u v"], labels: Int[Tensor, "b u"], temperature: float = 1.0, top_k: int | None = None
) -> Said:
    """The teacher's distributions over the next token at the target tokens, in the order of `labels`.

    With `top_k` they have k + 1 classes: the teacher's k likeliest tokens, and all others together. The divergence over
    these classes is a lower bound of the divergence over all tokens, and equal to it if k is the vocabulary size.

    Args:
        teacher: logits of the teacher.
        labels: target tokens; -100 where there is no target.
    """
    log_p = (teacher[labels != IGNORED_LABEL].float() / temperature).log_softmax(-1)
    if top_k is None or top_k >= log_p.shape[-1]:
        return Said(log_p, None)
    best = log_p.topk(top_k, dim=-1).indices
    return Said(_classes(log_p, best), best)


def divergence(
    student: Float[Tensor, "b u v"], said: Said, labels: Int[Tensor, "b u"], temperature: float = 1.0
) -> Tensor:
    """T² · KL(teacher ‖ student) of the next token, summed over the target tokens, in float32.

    Args:
        student: logits of the student, which receive gradients.
        said: the teacher's distributions, from `what_is_said` with the same temperature.
    """
    log_p = (student[labels != IGNORED_LABEL].float() / temperature).log_softmax(-1)
    if said.chosen is not None:
        log_p = _classes(log_p, said.chosen)
    return temperature**2 * F.kl_div(log_p, said.log_p, reduction="sum", log_target=True)


def _classes(log_p: Float[Tensor, "n v"], chosen: Int[Tensor, "n k"]) -> Float[Tensor, "n k+1"]:
    """Log-probabilities of the k chosen tokens, and of all other tokens together."""
    rest = log_p.scatter(-1, chosen, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, chosen), rest], dim=-1)


def hidden_loss(
    student: Float[Tensor, "L b u d"], teacher: Float[Tensor, "L b u d"], labels: Int[Tensor, "b u"]
) -> Tensor:
    """Normalised L1 distance of hidden states: divided by the L1 norm of the teacher's, mean over layers, summed over
    the target tokens, in float32."""
    targets = labels != IGNORED_LABEL
    ours, theirs = (each[:, targets].float() for each in (student, teacher))
    distance = (ours - theirs).abs().sum(-1) / theirs.abs().sum(-1)
    return distance.mean(0).sum()


@dataclass
class _Hidden:
    """Recorder of the outputs of all decoder layers at the positions that predict `labels`."""

    main: MainModel
    labels: Int[Tensor, "b u"]

    def __post_init__(self) -> None:
        self._states: dict[int, Tensor] = {}

    def sites(self) -> dict[Site, Binding]:
        """The bindings that record the states during a pass."""
        return {
            layer: functools.partial(self._keep, number)
            for number, layer in enumerate(layers(self.main.model, "decoder"))
        }

    def _keep(self, number: int, _: Tensor, output: Any) -> Any:
        # The last positions, as for the logits. A layer of a T5 returns a tuple that begins with its states.
        states: Tensor = output[0] if isinstance(output, tuple) else output
        self._states[number] = states[:, -self.labels.shape[1] :]
        return output

    def stacked(self) -> Float[Tensor, "L b u d"]:
        """The states of all layers, from the bottom."""
        return torch.stack([self._states[number] for number in range(len(self._states))])


@contextmanager
def _watching(hidden: _Hidden | None) -> Iterator[None]:
    with binding({} if hidden is None else hidden.sites()):
        yield


def _check_reads(name: str, teacher: HartModel) -> None:
    form = teacher.input_format
    if form.demonstrations_to == "hypernetwork":
        raise HartError(
            f"{_FIELD}: {name} reads demonstrations with a hypernetwork; a teacher reads them in its own input: name a "
            "system whose data.demonstrations_to is main"
        )
    if form.demonstrations_to == "nowhere":
        raise HartError(f"{_FIELD}: {name} reads the query alone; name a system whose data.demonstrations_to is main")


def _check_tokens(name: str, teacher: MainModel, student: MainModel) -> None:
    """Raise `HartError` unless both distributions are over the same tokens."""
    if teacher is student:
        return
    same = tokenizer_digest(teacher.tokenizer) == tokenizer_digest(student.tokenizer)
    sizes = [each.model.config.vocab_size for each in (teacher, student)]
    if same and sizes[0] == sizes[1]:
        return
    what = f"vocabulary ({sizes[0]} tokens, and {sizes[1]})" if sizes[0] != sizes[1] else "tokenizer"
    raise HartError(
        f"{_FIELD}: {name} has another {what} than {student.name} (model.base), so their answers cannot be compared "
        "token by token; name a teacher of the same family"
    )


def _check_room(name: str, teacher: HartModel, student: InputFormat) -> None:
    """Raise `HartError` if the teacher's input may exceed its learned positions (GPT-2)."""
    room = teacher.main.room(teacher.kinds)
    # The last token of an answer is predicted and not read.
    tokens = teacher.input_format.max_demonstrations_length + student.max_target_length - 1
    if room is not None and tokens > room:
        raise HartError(
            f"{_FIELD}: {name} reads up to {tokens} tokens of task, query and answer, and has {room} positions for "
            "them; lower data.max_demonstrations_length"
        )
