"""What GPUs can do, by their makers' sheets. Imports nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU as its maker describes it; what a program reaches is less."""

    name: str
    """What the driver's name of it contains, word by word."""
    flops: float
    """Dense bf16 multiply-adds, two each, a second."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second between memory and chip."""
    link: float
    """Bytes a second to the other GPUs of its machine, in each direction: NVLink, or PCIe where there is none."""


NVLINK_3, NVLINK_4, NVLINK_5 = 300e9, 450e9, 900e9
PCIE_4, PCIE_5 = 32e9, 64e9
CARDS = tuple(
    Card(*row)
    for row in (
        ("B200", 2250e12, 180e9, 7700e9, NVLINK_5),
        ("H200", 989e12, 141e9, 4800e9, NVLINK_4),
        ("GH200", 989e12, 96e9, 4000e9, NVLINK_4),
        ("H100 PCIe", 756e12, 80e9, 2000e9, PCIE_5),
        ("H100 NVL", 835e12, 94e9, 3900e9, PCIE_5),
        ("H100", 989e12, 80e9, 3350e9, NVLINK_4),
        ("A100 40GB", 312e12, 40e9, 1555e9, NVLINK_3),
        ("A100", 312e12, 80e9, 2039e9, NVLINK_3),
        ("L40S", 362e12, 48e9, 864e9, PCIE_4),
        ("L40", 181e12, 48e9, 864e9, PCIE_4),
        ("L4", 121e12, 24e9, 300e9, PCIE_4),
        ("A10", 125e12, 24e9, 600e9, PCIE_4),
        ("A10G", 70e12, 24e9, 600e9, PCIE_4),
        ("RTX A6000", 155e12, 48e9, 768e9, PCIE_4),
        ("RTX 4090", 165e12, 24e9, 1008e9, PCIE_4),
        ("RTX 3090", 71e12, 24e9, 936e9, PCIE_4),
    )
)
"""The first whose words are all in a driver's name is that card."""


def card(name: str) -> Card | None:
    """The card of a driver's name ("NVIDIA H100 80GB HBM3") or of a user's word ("h100-pcie"); None if unknown."""
    words = _words(name)
    return next((known for known in CARDS if _words(known.name) <= words), None)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
