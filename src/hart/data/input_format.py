"""The input format of a model: how tasks, queries and answers become tokens. It is saved in the model's folder.

Everything that turns text into tokens holds an `InputFormat`: data sets, models, adaptations, the server, evaluations.

Limits (App. 8.1.3): demonstrations are added in order as long as the whole text fits; the first one that does not fit
ends the list. A text that is still too long is cut from the end. A query is never left out. Every sequence, cut or
not, ends with the end-of-sequence token, except a query without `input_eos` (as T0 reads it) or in a chat template.
Texts that do not fit are recorded in the `cuts` of the caller; without `cuts` they are shortened silently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, Self, get_args

from hart.data.prompts import Cuts, PromptFormat, Tokenizer, pieces, query_text, unanswered
from hart.data.reading import check_text
from hart.data.tasks import Task
from hart.data.tokens import begin_of, cut_to, fitting, in_template, note_length, templated, tokens_of
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.config import DataConfig

DemonstrationsTo = Literal["hypernetwork", "main", "nowhere"]


@dataclass(frozen=True)
class InputFormat:
    """How a task, a query and an answer are turned into tokens; a trained model expects the format of its training.

    Attributes:
        num_demonstrations: K of §2.1; the first K demonstrations of a task are shown.
        demonstration_groups: the most groups of `num_demonstrations` that the hypernetwork reads, each behind the
            definition and with its own `max_demonstrations_length`.
        explanations: whether each demonstration is followed by its explanation (Tk-Instruct).
        max_demonstrations_length, max_query_length, max_target_length: limits in tokens, including the end of sequence
            (App. 8.1.3). Where the main model reads demonstrations and query together, `max_demonstrations_length`
            limits both (Tk-Instruct: 1024).
        demonstrations_to: who reads definition and demonstrations: the "hypernetwork"; "main", which puts them before
            the query (the in-context baselines); or "nowhere" (FT-Zero-Shot).
        prompt_format: how a task is written: "instructions" as `hart.data.prompts.render_task` writes it; "prompts" as
            the tokens of each demonstration's input and target, with an end of sequence after each target.
        input_eos: whether the main model's input ends with the end-of-sequence token, which tells a decoder-only model
            where its answer begins.
        omit_definition, omit_demonstrations: shares of training tasks that were shown without their definition, or
            without demonstrations. A model trained with both reads tasks that have only one of the two.
        definition_first: share of training steps, from the first on, that showed definitions alone.
        fewest_demonstrations: least number of demonstrations per training task, where the number was drawn at each
            step; None: tasks always showed all of them.
        chat_template: whether the main model's input is a user message in the chat template of its tokenizer; the
            template then marks where the answer begins.

    Raises:
        HartError: an option is unknown, a length leaves no room for a token besides the end of sequence, or
            `chat_template` is combined with demonstrations that are given as tokens.
    """

    num_demonstrations: int = 2
    demonstration_groups: int = 1
    explanations: bool = False
    max_demonstrations_length: int = 1024
    max_query_length: int = 384
    max_target_length: int = 128
    demonstrations_to: DemonstrationsTo = "hypernetwork"
    prompt_format: PromptFormat = "instructions"
    input_eos: bool = True
    chat_template: bool = False
    omit_definition: float = 0.0
    omit_demonstrations: float = 0.0
    definition_first: float = 0.0
    fewest_demonstrations: int | None = None

    def __post_init__(self) -> None:
        for name, options in (
            ("demonstrations_to", get_args(DemonstrationsTo)),
            ("prompt_format", get_args(PromptFormat)),
        ):
            if getattr(self, name) not in options:
                raise HartError(f"{name}: '{getattr(self, name)}' is not one of {', '.join(options)}")
        for name in ("max_demonstrations_length", "max_query_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise HartError(f"{name}: must be at least 2 tokens, not {getattr(self, name)}")
        if self.chat_template and self.in_context and self.prompt_format == "prompts":
            raise HartError("chat_template: must be false where P3's demonstrations are in the main model's input")
        if self.num_demonstrations < 0:
            raise HartError(f"num_demonstrations: must be at least 0, not {self.num_demonstrations}")
        if type(self.demonstration_groups) is not int or self.demonstration_groups < 1:
            raise HartError(
                f"demonstration_groups: must be a whole number of at least 1, not {self.demonstration_groups!r}"
            )

    @classmethod
    def from_config(cls, data: "DataConfig") -> Self:
        values = {f.name: getattr(data, f.name) for f in fields(cls)}
        if values["input_eos"] is None:
            values["input_eos"] = data.source.input_eos
        return cls(**values)

    @property
    def in_context(self) -> bool:
        """Whether the main model itself reads demonstrations before each query."""
        return self.demonstrations_to == "main"

    @property
    def most_demonstrations(self) -> int:
        """The most demonstrations of a task that are read, over all groups."""
        return self.num_demonstrations * self.demonstration_groups

    @property
    def reads_definition(self) -> bool:
        return self.prompt_format == "instructions" and self.demonstrations_to != "nowhere"

    def lacks(self, task: Task) -> str | None:
        """The missing part without which the model reads nothing of a task; None if it reads a part, or needs none."""
        definitions, demonstrations = self.prompt_format == "instructions", self.num_demonstrations > 0
        if self.demonstrations_to == "nowhere" or not (definitions or demonstrations):
            return None
        if (definitions and task.definition.strip()) or (demonstrations and task.demonstrations):
            return None
        return "definition" if definitions else "demonstrations"

    def check_readable(self, task: Task) -> None:
        """Raise `HartError` if the model would read nothing of a task."""
        lacking = self.lacks(task)
        if lacking is not None:
            problem, missing = {
                "definition": ("the definition is empty", "a definition"),
                "demonstrations": ("has no demonstrations", "demonstrations"),
            }[lacking]
            raise HartError(f"task {task.label}: {problem}, and the model reads nothing else; give it {missing}")

    def check_whole(self, task: Task, *, sampled: bool = False) -> None:
        """Raise `HartError` if a training task lacks a part that the model reads.

        Args:
            sampled: whether demonstrations are drawn from the instances.
        """
        self.check_readable(task)
        if self.reads_definition and not task.definition.strip():
            raise HartError(
                f"task {task.label}: the definition is empty, and the model reads it; write what the task asks for"
            )
        shows = self.demonstrations_to != "nowhere" and self.num_demonstrations and not sampled
        if shows and not task.demonstrations:
            raise HartError(
                f"task {task.label}: has no demonstrations, and data.num_demonstrations is {self.num_demonstrations}; "
                "give it some, or set that to 0"
            )

    def shown(self, task: Task) -> Task:
        """The task with only the demonstrations that are shown: the first ones, as in the benchmarks' protocols."""
        return replace(task, demonstrations=task.demonstrations[: max(1, self.most_demonstrations)])

    def note_unread(self, task: Task, cuts: Cuts) -> None:
        """Record in `cuts` the parts of a task that this format leaves unread, and those that training lacked."""
        where, count = f"task {task.label}", len(task.demonstrations)
        if self.demonstrations_to == "nowhere":
            cuts.note("is not read: this model answers queries without a definition or demonstrations", where)
            return
        most = self.most_demonstrations
        if count > most:
            cuts.note(f"reads {most} demonstrations", where, f"reads {most} of {count} demonstrations")
        if self.prompt_format == "prompts" and task.definition.strip():
            cuts.note("its definition is not read: this model reads demonstrations alone", where)
        for kind in self.never_seen(task):
            cuts.note(kind, where)

    def never_seen(self, task: Task) -> list[str]:
        """Ways in which a task differs from all training tasks of a model of this format, as phrases.

        `check_whole` guarantees that every training task had the parts that the model reads.
        """
        found = []
        if self.reads_definition and not task.definition.strip() and not self.omit_definition:
            found.append("has no definition, which every training task of the model had")
        alone = self.omit_demonstrations or self.definition_first
        shows = self.demonstrations_to != "nowhere" and self.num_demonstrations and not alone
        if shows and not task.demonstrations:
            found.append("has no demonstrations, which every training task of the model had")
        return found

    def encode_task(self, tokenizer: Tokenizer, task: Task, cuts: Cuts | None = None) -> list[int]:
        """Tokens of a task without a query, the input of the hypernetwork.

        A definition that is too long by itself is cut from the end; without a definition the first demonstration is cut
        (in the format "prompts" its input). If nothing of the task is read (`lacks`), the end of sequence is the only
        token.
        """
        begin = begin_of(tokenizer)  # the beginning of sequence of a decoder-only main model that encodes the task
        if self.prompt_format == "prompts":
            return begin + self._encode_prompts(tokenizer, task, [], cuts, taken=len(begin))
        return begin + self._encode_instructions(tokenizer, task, "", cuts, taken=len(begin))

    def encode_groups(self, tokenizer: Tokenizer, task: Task, cuts: Cuts | None = None) -> list[list[int]]:
        """Tokens of a task for the hypernetwork: `encode_task` of each group of its demonstrations."""
        return [self.encode_task(tokenizer, group, cuts) for group in self.groups(task)]

    def groups(self, task: Task) -> list[Task]:
        """One task per group of demonstrations: as many groups as the demonstrations fill, at least one."""
        if self.demonstration_groups == 1:
            return [task]
        size, shown = max(1, self.num_demonstrations), task.demonstrations[: max(1, self.most_demonstrations)]
        starts = range(0, max(1, len(shown)), size)
        return [replace(task, demonstrations=shown[at : at + size], instances=()) for at in starts]

    def encode_input(
        self,
        tokenizer: Tokenizer,
        task: Task,
        query: str,
        cuts: Cuts | None = None,
        *,
        name: str = "",
        blank: bool = False,
    ) -> list[int]:
        """Tokens that the main model reads: the query, after definition and demonstrations if the format is in-context.

        Args:
            name: name of the query in `cuts`, where it is encoded alone.
            blank: accept a query without any text, as official data has them; otherwise it is refused.

        Raises:
            HartError: the query is empty and `blank` is False.
        """
        if self.in_context:
            return self.encode_in_context(tokenizer, task, query, cuts, blank=blank)
        return self.encode_query(tokenizer, query, cuts, name=name, blank=blank)

    def encode_in_context(
        self, tokenizer: Tokenizer, task: Task, query: str, cuts: Cuts | None = None, *, blank: bool = False
    ) -> list[int]:
        """Tokens of definition, demonstrations and query, all within the limit of the demonstrations.

        Demonstrations are left out until definition and query fit. If these two alone are too long, the end of the text
        is cut, as Tk-Instruct does. Without `input_eos` the text ends right before the answer, so that a decoder-only
        model continues it.

        Raises:
            HartError: as `encode_input`.
        """
        limit = self.max_demonstrations_length
        if self.prompt_format == "instructions":
            tail = unanswered(query, blank)
            if self.chat_template:
                around = len(in_template(tokenizer, "", limit)[0])
                kept, _ = self._fitting(tokenizer, task, tail, limit - around, cuts)
                text = "".join(pieces(task, self.num_demonstrations, self.explanations)[: kept + 1]) + tail
                return in_template(tokenizer, text, limit)[0]
            begin = begin_of(tokenizer)
            tail = tail if self.input_eos else tail.rstrip()  # a space belongs to the answer's first token
            return begin + self._encode_instructions(tokenizer, task, tail, cuts, taken=len(begin), eos=self.input_eos)
        begin = begin_of(tokenizer)
        read = tokens_of(tokenizer, query_text(query, blank=blank))
        note_length(begin + read, limit, self.input_eos, "query", cuts, f"task {task.label}")
        read = cut_to(read, limit - len(begin), tokenizer, eos=self.input_eos)
        return begin + self._encode_prompts(tokenizer, task, read, cuts, taken=len(begin))

    def encode_query(
        self, tokenizer: Tokenizer, text: str, cuts: Cuts | None = None, *, name: str = "", blank: bool = False
    ) -> list[int]:
        """Tokens of a raw query for the main model: at least one, cut from the end.

        A query of which the tokenizer drops every character becomes the end of sequence alone, and so does a blank one.

        Args:
            name: name of the query in `cuts` and error messages ("query 3").
            blank: accept a query without any text, as official data has them.

        Raises:
            HartError: the query is empty and `blank` is False, or it holds half of a surrogate pair.
        """
        text, limit = query_text(text, name, blank), self.max_query_length
        if self.chat_template:
            tokens, fits = in_template(tokenizer, text, limit)
            if not fits and cuts is not None:
                cuts.note(f"cut the end of the query to stay within {limit} tokens", name)
            return tokens
        begin = begin_of(tokenizer)
        read = tokens_of(tokenizer, text)
        note_length(begin + read, limit, self.input_eos, "query", cuts, name)
        return begin + cut_to(read, limit - len(begin), tokenizer, eos=self.input_eos)

    def encode_conversation(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation in the chat template, up to the answer, without any cut.

        Args:
            messages: a `role` and a `content` each, passed to the template unchanged.

        Raises:
            HartError: this format has no chat template, or the template refuses the messages.
        """
        if not self.chat_template:
            raise HartError("messages: this model has no chat template (data.chat_template), so it reads one query")
        return templated(tokenizer, messages)

    def encode_target(self, tokenizer: Tokenizer, text: str, cuts: Cuts | None = None, *, name: str = "") -> list[int]:
        """Tokens of a reference answer, cut from the end; it may be empty. `name` as in `encode_query`."""
        read = tokens_of(tokenizer, check_text(text.strip(), name or "the answer"))
        note_length(read, self.max_target_length, True, "target", cuts, name)
        return cut_to(read, self.max_target_length, tokenizer)

    def encode_continuation(
        self, tokenizer: Tokenizer, text: str, cuts: Cuts | None = None, *, name: str = ""
    ) -> list[int]:
        """Tokens of an answer as the continuation of an input: with a leading space and without an end of sequence.

        This is how a plain decoder-only base writes it. An empty answer is the end of sequence alone.
        """
        text = check_text(text.strip(), name or "the answer")
        # Some tokenizers put a space before every text, so that a leading one would become two.
        before, read = tokens_of(tokenizer, ":"), tokens_of(tokenizer, f": {text}") if text else []
        read = (
            read[len(before) :] if read[: len(before)] == before else tokens_of(tokenizer, f" {text}" if text else "")
        )
        note_length(read, self.max_target_length, False, "target", cuts, name)
        return cut_to(read, self.max_target_length, tokenizer, eos=False)

    def _encode_instructions(
        self, tokenizer: Tokenizer, task: Task, tail: str, cuts: Cuts | None, *, taken: int = 0, eos: bool = True
    ) -> list[int]:
        max_length = self.max_demonstrations_length - taken
        _, tokens = self._fitting(tokenizer, task, tail, max_length, cuts)
        return cut_to(tokens, max_length, tokenizer, eos=eos)

    def _fitting(
        self, tokenizer: Tokenizer, task: Task, tail: str, max_length: int, cuts: Cuts | None
    ) -> tuple[int, list[int]]:
        """The result of `hart.data.tokens.fitting`; records in `cuts` what is left out or has to be cut."""
        parts = pieces(task, self.num_demonstrations, self.explanations)
        wanted = len(parts) - 1
        # Without definition and query the first demonstration is kept (and cut), so that something is read.
        alone = int(not parts[0] and not tail and wanted > 0)
        kept, tokens = fitting(tokenizer, parts[alone:], tail, max_length)
        shown = kept + alone
        if cuts is not None:
            limit = f"to stay within {self.max_demonstrations_length} tokens"
            numbers = ", ".join(str(number) for number in range(shown + 1, wanted + 1))
            left_out = f"left out demonstration {numbers} of {wanted}"
            if len(tokens) >= max_length:
                what = "text with its query" if tail else "first demonstration" if alone else "definition"
                kind = f"cut the end of the {what} {limit}"
                cuts.note(kind, f"task {task.label}", f"{left_out} and {kind}" if shown < wanted else kind)
            elif shown < wanted:
                cuts.note(f"left out demonstrations {limit}", f"task {task.label}", f"{left_out} {limit}")
        return kept, tokens

    def _encode_prompts(
        self, tokenizer: Tokenizer, task: Task, query: list[int], cuts: Cuts | None, *, taken: int = 0
    ) -> list[int]:
        """As many demonstrations as fit before the query, in order; without a query at least one, cut if necessary."""
        max_length = self.max_demonstrations_length - taken
        room = max_length - len(query)
        chosen = task.demonstrations[: self.num_demonstrations]
        tokens: list[int] = []
        for index, demonstration in enumerate(chosen):
            read = tokens_of(tokenizer, demonstration.input.strip())
            answer = [*tokens_of(tokenizer, demonstration.output.strip()), tokenizer.eos_token_id]
            if len(tokens) + len(read) + len(answer) > room:
                only = not tokens and not query
                cut = "input" if len(answer) <= room else "input and target"
                if only:
                    answer = [*answer[: room - 1], tokenizer.eos_token_id] if len(answer) > room else answer
                    tokens = read[: room - len(answer)] + answer
                if cuts is not None:
                    limit = f"to stay within {self.max_demonstrations_length} tokens"
                    kind = f"left out demonstrations {limit}"
                    if only:
                        kind = f"cut the {cut} of the only demonstration that it shows {limit}"
                    shown = "" if only else f"shows {index} of {len(chosen)} demonstrations {limit}"
                    cuts.note(kind, f"task {task.label}", shown)
                break
            tokens += read + answer
        return tokens + query if tokens or query else [tokenizer.eos_token_id]
