from dataclasses import dataclass

from runtime.bench.figures import Report


@dataclass(frozen=True, slots=True)
class Turn:
    seconds: float
    num_tokens: int

    @property
    def rate(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Turns(Report):
    name: str
    turns: tuple[Turn, ...]

    @property
    def best(self) -> float:
        return max(self._rates)

    @property
    def _rates(self) -> list[float]:
        return [turn.rate for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Headed(Report):
    within: Turns
    by_name: dict[str, Turn]

    def to_record(self) -> dict:
        return {"head": self.within.best, **Report.to_record(self)}


def test_a_record_holds_properties_and_fields_all_the_way_down() -> None:
    turns = Turns("a", (Turn(2.0, 4), Turn(1.0, 5)))
    record = {
        "best": 5.0,
        "name": "a",
        "turns": [{"rate": 2.0, "seconds": 2.0, "num_tokens": 4}, {"rate": 5.0, "seconds": 1.0, "num_tokens": 5}],
    }
    assert turns.to_record() == record
    assert turns.lines() == []
    headed = Headed(turns, {"first": turns.turns[0]})
    assert headed.to_record() == {"head": 5.0, "within": record, "by_name": {"first": record["turns"][0]}}
