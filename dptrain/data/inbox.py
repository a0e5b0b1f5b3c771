"""The tasks that workers have, and their answers: which is handed out next.

Owns: `Task`, `Inbox`. Must not know: how tasks are chosen, what is done with answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dptrain.data.fetch import Keys
from dptrain.data.pinning import pin
from dptrain.data.worker import BATCH, ERROR, Failure

if TYPE_CHECKING:
    from dptrain.data.crew import Crew

#: How often one who waits for an answer looks whether to give up.
_LOOK_S = 0.05


@dataclass(slots=True)
class Task:
    """One batch to be fetched.

    Attributes:
        taken: what the sampler gave: sample numbers, or one.
        keys: whose random draws its are.
        place_before: samples consumed before it.
        worker: who fetches it.
        answer: kind and value, once it is there.
    """

    taken: Any
    keys: Keys
    place_before: int
    worker: int = 0
    answer: tuple[str, Any] | None = None


class Inbox:
    """The answers of a crew during one pass.

    Args:
        crew: the workers.
        in_order: whether answers are handed out in the order of their tasks.

    Attributes:
        tasks: by number, those whose answer was not handed out.
        load: of each worker, the tasks that it has not answered.
    """

    def __init__(self, crew: Crew, in_order: bool) -> None:
        self.crew, self.in_order = crew, in_order
        self.tasks: dict[int, Task] = {}
        self.load = [0] * len(crew)

    def add(self, task: Task) -> None:
        """Give a task to its worker."""
        self.load[task.worker] += 1
        self.tasks[self.crew.ask(task.worker, task.taken, task.keys)] = task

    def awaited(self) -> list[int]:
        """The workers one of whose answers is waited for."""
        if self.in_order:
            return [next(iter(self.tasks.values())).worker]
        return sorted({task.worker for task in self.tasks.values()})

    def next(self, timeout_s: float) -> int:
        """The number of the task whose answer is handed out next, once it is there.

        Args:
            timeout_s: how long to wait for an answer; 0 waits for ever.

        Raises:
            TimeoutError: time is up.
            RuntimeError: a worker has died.
        """
        while True:
            number = next(iter(self.tasks))
            if self.tasks[number].answer is not None:
                return number
            heard = self.crew.hear(self.awaited(), timeout_s)
            if heard is None:
                raise TimeoutError
            worker, number, *answer = heard
            task = self.tasks.get(number)
            if task is None:  # of a pass that was abandoned
                continue
            self.load[worker] -= 1
            task.answer = tuple(answer)
            if not self.in_order:
                return number

    def next_pinned(self, where: str, given_up: Callable[[], bool]) -> int | None:
        """As `next`, for ever, with the batch in page-locked memory; None if told to give up.

        Args:
            where: in whose hands a batch is when it cannot be pinned, for the error's text.
            given_up: whether to give up.
        """
        while not given_up():
            try:
                number = self.next(_LOOK_S)
            except TimeoutError:
                continue
            task = self.tasks[number]
            assert task.answer is not None
            kind, value = task.answer
            if kind == BATCH:
                try:
                    task.answer = BATCH, pin(value)
                except Exception as error:
                    task.answer = ERROR, Failure.of(error, where)
            return number
        return None
