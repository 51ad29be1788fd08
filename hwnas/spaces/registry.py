"""The encoders and heads there are: one decorator and one file make another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from hwnas.records import stored
from hwnas.spaces.parts import Encoder, Head

EncoderClass = TypeVar("EncoderClass", bound=type[Encoder])
HeadClass = TypeVar("HeadClass", bound=type[Head])
_ENCODERS: dict[str, type[Encoder]] = {}
_HEADS: dict[str, type[Head]] = {}


def encoder(name: str) -> Callable[[EncoderClass], EncoderClass]:
    """Register a frozen dataclass as the encoder of a name, also in files; tests are parametrised over the registry."""

    def register(cls: EncoderClass) -> EncoderClass:
        assert name not in _ENCODERS, f"two encoders are called {name}"
        cls.name = name
        _ENCODERS[name] = cls
        stored(f"encoder/{name}")(cls)
        return cls

    return register


def head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Register a frozen dataclass as the head of a name, also in files; tests are parametrised over the registry."""

    def register(cls: HeadClass) -> HeadClass:
        assert name not in _HEADS, f"two heads are called {name}"
        cls.name = name
        _HEADS[name] = cls
        stored(f"head/{name}")(cls)
        return cls

    return register


def registered_encoders() -> Mapping[str, type[Encoder]]:
    """Return all encoders by name."""
    return dict(_ENCODERS)


def registered_heads() -> Mapping[str, type[Head]]:
    """Return all heads by name."""
    return dict(_HEADS)
