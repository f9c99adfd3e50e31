"""How tasks, queries and answers become tokens: what a trained model expects, kept in its folder.

Whoever turns text into tokens holds an `InputFormat`: data sets, models, adaptations, the server, evaluations.

Limits (section 8.1.3): an example is added only while the whole text still fits, the first that does not fit ends the
list; what is then still too long is cut from the end. No query is ever left out. Every sequence ends with the
end-of-sequence token, also where it was cut; a query has none where the main model is to read it as T0 did, or in a
chat template. What did not fit is noted in the `cuts` that a caller gives, and not told without them.
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
        num_demonstrations: how many of a task are shown, the first ones (K of section 2.1).
        demonstration_groups: how many groups of that many the hypernetwork reads at most, each behind the definition
            and with the limit of the demonstrations to itself.
        explanations: whether they show their explanation (Tk-Instruct).
        max_demonstrations_length, max_query_length, max_target_length: in tokens, end of sequence included (section
            8.1.3). Demonstrations and query together have the limit of the demonstrations (Tk-Instruct: 1024).
        demonstrations_to: who reads definition and demonstrations. "main" puts them before the query (the in-context
            baselines), "nowhere" leaves them out (FT-Zero-Shot).
        prompt_format: how a task is written. "instructions" is `hart.data.prompts.render_task`; "prompts" are the
            tokens of each demonstration's input and target, with an end of sequence behind each target.
        input_eos: whether a query (of "prompts": also behind demonstrations) ends with the end-of-sequence token. It
            tells a decoder-only model where its answer begins.
        omit_definition, omit_demonstrations: shares of the training's tasks that were told without the one or the
            other: a model that met both reads either part alone.
        definition_first: share of the training's steps, from the first on, that told definitions alone.
        fewest_demonstrations: the least number of demonstrations that the training's tasks were told with, where it
            was drawn for each; None: all of them.
        chat_template: whether the main model's input is a user's message in the template of its tokenizer, which then
            says where the answer begins.

    Raises:
        HartError: an unknown option, a length that leaves no room for a token beside the end of sequence, or a chat
            template for demonstrations that are tokens.
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
        if self.demonstration_groups < 1:
            raise HartError(f"demonstration_groups: must be at least 1, not {self.demonstration_groups}")

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
        """How many demonstrations of a task are read at most, in all groups."""
        return self.num_demonstrations * self.demonstration_groups

    @property
    def reads_definition(self) -> bool:
        return self.prompt_format == "instructions" and self.demonstrations_to != "nowhere"

    def lacks(self, task: Task) -> str | None:
        """What a task must be given before the model reads anything of it; None where it reads something already."""
        definitions, demonstrations = self.prompt_format == "instructions", self.num_demonstrations > 0
        if self.demonstrations_to == "nowhere" or not (definitions or demonstrations):
            return None
        if (definitions and task.definition.strip()) or (demonstrations and task.demonstrations):
            return None
        return "definition" if definitions else "demonstrations"

    def check_readable(self, task: Task) -> None:
        """Raise `HartError` for a task of which the model would read nothing."""
        lacking = self.lacks(task)
        if lacking is not None:
            problem = {"definition": "the definition is empty", "demonstrations": "has no demonstrations"}[lacking]
            raise HartError(f"task {task.label}: {problem}, and the model reads nothing else; give it a {lacking}")

    def check_whole(self, task: Task, *, sampled: bool = False) -> None:
        """Raise `HartError` for a task without all that the model is to read in training.

        Args:
            sampled: whether demonstrations are drawn from the instances.
        """
        self.check_readable(task)
        if self.reads_definition and not task.definition.strip():
            raise HartError(f"task {task.label}: the definition is empty, and the model reads it; say what it asks for")
        shows = self.demonstrations_to != "nowhere" and self.num_demonstrations and not sampled
        if shows and not task.demonstrations:
            raise HartError(
                f"task {task.label}: has no demonstrations, and data.num_demonstrations is {self.num_demonstrations}; "
                "give it some, or set that to 0"
            )

    def shown(self, task: Task) -> Task:
        """The task with the demonstrations that are shown: the first ones, as the protocols have it."""
        return replace(task, demonstrations=task.demonstrations[: max(1, self.most_demonstrations)])

    def note_unread(self, task: Task, cuts: Cuts) -> None:
        """Note what of a task a model of this format leaves unread, whatever its length."""
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
        """What a model of this format never met in its training, which `check_whole` had looked through."""
        found = []
        if self.reads_definition and not task.definition.strip() and not self.omit_definition:
            found.append("has no definition, and every task of the model's training had one")
        alone = self.omit_demonstrations or self.definition_first
        shows = self.demonstrations_to != "nowhere" and self.num_demonstrations and not alone
        if shows and not task.demonstrations:
            found.append("has no demonstrations, and every task of the model's training had some")
        return found

    def encode_task(self, tokenizer: Tokenizer, task: Task, cuts: Cuts | None = None) -> list[int]:
        """Tokens of a task without a query, what the hypernetwork reads.

        A definition that alone is too long is cut from the end; without one, the first demonstration is, of prompts
        its input. Where nothing of the task is read (`lacks`) it is the end of sequence alone.
        """
        begin = begin_of(tokenizer)  # a decoder-only main model's, where it encodes the task itself
        if self.prompt_format == "prompts":
            return begin + self._encode_prompts(tokenizer, task, [], cuts, taken=len(begin))
        return begin + self._encode_instructions(tokenizer, task, "", cuts, taken=len(begin))

    def encode_groups(self, tokenizer: Tokenizer, task: Task, cuts: Cuts | None = None) -> list[list[int]]:
        """Tokens of a task for the hypernetwork: those of `encode_task` for each group of its demonstrations."""
        return [self.encode_task(tokenizer, group, cuts) for group in self.groups(task)]

    def groups(self, task: Task) -> list[Task]:
        """The task with each group of its demonstrations, as many as there are demonstrations for, at least one."""
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
        """Tokens that the main model reads: the query, behind the task where the format says so.

        Args:
            name: under which a cut of the query alone is noted.
            blank: whether a query without a word is expected, as of official data; it is refused otherwise.

        Raises:
            HartError: the query is empty.
        """
        if self.in_context:
            return self.encode_in_context(tokenizer, task, query, cuts, blank=blank)
        return self.encode_query(tokenizer, query, cuts, name=name, blank=blank)

    def encode_in_context(
        self, tokenizer: Tokenizer, task: Task, query: str, cuts: Cuts | None = None, *, blank: bool = False
    ) -> list[int]:
        """Tokens of definition, demonstrations and query, all within the limit of the demonstrations.

        Examples give way to the query. Where definition and query alone are too long, the end of the text is cut, as
        Tk-Instruct does. Without `input_eos` the text ends where a model that continues texts has to begin.

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
            tail = tail if self.input_eos else tail.rstrip()  # a space is the beginning of an answer's first token
            return begin + self._encode_instructions(tokenizer, task, tail, cuts, taken=len(begin), eos=self.input_eos)
        begin = begin_of(tokenizer)
        read = tokens_of(tokenizer, query_text(query, blank=blank))
        note_length(begin + read, limit, self.input_eos, "query", cuts, f"task {task.label}")
        read = cut_to(read, limit - len(begin), tokenizer, eos=self.input_eos)
        return begin + self._encode_prompts(tokenizer, task, read, cuts, taken=len(begin))

    def encode_query(
        self, tokenizer: Tokenizer, text: str, cuts: Cuts | None = None, *, name: str = "", blank: bool = False
    ) -> list[int]:
        """Tokens of a raw query for the main model, at least one, cut from the end.

        A query of characters that the tokenizer drops is read as the end of sequence alone, and so is a blank one,
        which is refused unless `blank` says that it is expected, as in official data. A cut is noted under `name`
        ("query 3").

        Raises:
            HartError: the query is empty, or holds half of a surrogate pair.
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
        """Tokens of the messages of a conversation in the chat template, up to the answer; nothing of them is cut.

        Args:
            messages: each a `role` and its `content`, as they are.

        Raises:
            HartError: this format has no chat template, or the template refuses the messages.
        """
        if not self.chat_template:
            raise HartError("messages: this model has no chat template (data.chat_template), so it reads one query")
        return templated(tokenizer, messages)

    def encode_target(self, tokenizer: Tokenizer, text: str, cuts: Cuts | None = None, *, name: str = "") -> list[int]:
        """Tokens of a reference answer, cut from the end; it may be empty. A cut is noted as by `encode_query`."""
        read = tokens_of(tokenizer, check_text(text.strip(), name or "the answer"))
        note_length(read, self.max_target_length, True, "target", cuts, name)
        return cut_to(read, self.max_target_length, tokenizer)

    def encode_continuation(
        self, tokenizer: Tokenizer, text: str, cuts: Cuts | None = None, *, name: str = ""
    ) -> list[int]:
        """Tokens of an answer as what goes on behind an input: a space before it, and no end of sequence behind it.

        So a plain decoder-only base would write it. An empty one is the end of sequence.
        """
        text = check_text(text.strip(), name or "the answer")
        # Tokenizers that put a space before every text would make two of a leading one.
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
        """As the function of that name; notes what is left out or has to be cut."""
        parts = pieces(task, self.num_demonstrations, self.explanations)
        wanted = len(parts) - 1
        # Where nothing else would be read, the first demonstration stays, as a definition does.
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
        """Demonstrations as many as fit before the query, in order; without a query at least one, cut if it must be."""
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
