"""A bounded queue in which every task has its turn."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")
CROWDED = 0.5  # of the capacity; from there on no task may have more than its share


class FairQueue(Generic[T]):
    """Tasks take turns, one item each; the items of a task come in order. Not safe for threads.

    Args:
        capacity: items of all tasks together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()  # next in turn first
        self._coming: Counter[str] = Counter()
        self._num_coming = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def has_room(self, task: str) -> bool:
        """Whether an item of the task is worth making: it would be kept once it is put.

        Those that are coming have their room. Where it is crowded a task takes no more than its
        share: of tasks that all ask for too much none has to give way to another.
        """
        taken = self._size + self._num_coming
        if taken < CROWDED * self.capacity:
            return True
        own = len(self._waiting.get(task, ())) + self._coming[task]
        others = sum(other not in self._waiting for other in self._coming)
        tasks = len(self._waiting) + others + (own == 0)
        if own >= max(1, self.capacity // tasks):
            return False
        most = max(map(len, self._waiting.values()), default=0)
        giving_way = taken - self.capacity  # to those that are coming, already
        return giving_way < 0 or own + 1 < most - giving_way

    def come(self, task: str) -> None:
        """An item of the task is being made; it leaves when it was put, or will not be."""
        self._coming[task] += 1
        self._num_coming += 1

    def leave(self, task: str) -> None:
        self._coming[task] -= 1
        self._num_coming -= 1
        if not self._coming[task]:
            del self._coming[task]

    def put(self, task: str, item: T) -> T | None:
        """Add an item; what there is no room for comes back.

        Of a full queue that is the newest item of the task that has the most, so that a task which
        floods the queue pays for it, and not the others.
        """
        self._waiting.setdefault(task, deque()).append(item)
        self._size += 1
        if self._size <= self.capacity:
            return None
        flooding = max(self._waiting, key=lambda name: (len(self._waiting[name]), name == task))
        return self._remove(flooding, newest=True)

    def discard(self, task: str, unwanted: Callable[[T], bool]) -> None:
        """Forget these items of the task."""
        items = self._waiting.get(task, deque())
        kept = deque(item for item in items if not unwanted(item))
        self._size -= len(items) - len(kept)
        if kept:
            self._waiting[task] = kept  # its turn comes when it would have
        elif items:
            del self._waiting[task]

    def oldest(self) -> Iterator[T]:
        """The oldest item of each task, in the order in which `take` gives them."""
        return (items[0] for items in self._waiting.values())

    def take(self) -> T:
        """The oldest item of the task whose turn it is; raises KeyError where there is none."""
        task = next(iter(self._waiting), "")
        item = self._remove(task)
        if task in self._waiting:
            self._waiting.move_to_end(task)
        return item

    def _remove(self, task: str, *, newest: bool = False) -> T:
        items = self._waiting[task]
        item = items.pop() if newest else items.popleft()
        if not items:
            del self._waiting[task]
        self._size -= 1
        return item
