"""How the results of a plan become a table: the entries each price is a sum of, and the use of each network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, sha256, write_atomic

ASSEMBLY_FILE = "assembly.json"


@dataclass(frozen=True)
class Price:
    """One op of the table.

    Attributes:
        entry: Key of the entry that measures the op in context.
        weights: By key of the entry; the price is the sum of weight times latency.
        macs: Multiply-adds.
        bytes: Bytes read and written.
    """

    entry: str
    weights: Mapping[str, float]
    macs: int
    bytes: int


@dataclass(frozen=True)
class Network:
    """One whole network.

    Attributes:
        use: ``"fit"``, ``"test"`` or ``"derived"``; ``"anchor"`` for one of the table that is measured again.
        scale: What `Scale.to_json` gives.
        architecture: What `Architecture.to_json` gives.
    """

    use: str
    scale: Mapping[str, Any]
    architecture: Mapping[str, Any]


@dataclass(frozen=True)
class Assembly:
    """The prices of all ops, by `OpSpec.key`, and the uses of all networks, by key of their entry."""

    ops: Mapping[str, Price] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)

    def save(self, folder: Path, plan_id: str) -> None:
        """Write it into the folder of the plan with this id, with a checksum."""
        content = {"plan": plan_id, **asdict(self)}
        write_atomic(folder / ASSEMBLY_FILE, canonical_json({"sha256": sha256(canonical_json(content)), **content}))

    @classmethod
    def load(cls, folder: Path, plan_id: str) -> Assembly:
        """Read what `save` wrote.

        Raises:
            HwnasError: If it is missing, was changed, or belongs to another plan.
        """
        path = folder / ASSEMBLY_FILE
        data = read_json(path, "what a plan's results are made into")
        checksum = data.pop("sha256", None) if isinstance(data, dict) else None
        if checksum != sha256(canonical_json(data)) or data["plan"] != plan_id:
            raise HwnasError(f"{path} is not whole or of another plan; remove the folder to write it anew")
        ops = {key: Price(**value) for key, value in data["ops"].items()}
        return cls(ops, {key: Network(**value) for key, value in data["networks"].items()})
