"""The processor's name and instruction sets, as the system has them in /proc/cpuinfo. Imports no torch."""

from __future__ import annotations

from pathlib import Path

INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
"""Those that matter for matrix products, by their flag in /proc/cpuinfo, of x86 and ARM."""
CPUINFO = Path("/proc/cpuinfo")


def processor() -> str | None:
    """Return the name of the processor; None where the system does not say it."""
    return _field("model name") or None


def instruction_sets() -> list[str]:
    """Return the names in `INSTRUCTION_SETS` that the processor has; empty where the system does not say it."""
    flags = set((_field("flags") or _field("Features")).split())
    return [name for flag, name in INSTRUCTION_SETS.items() if flag in flags]


def description() -> str | None:
    """Return the processor with its vector instructions: ``AMD EPYC with AVX2``; None where the system does not say it."""
    name = processor()
    if name is None:
        return None
    vector = [known for known in instruction_sets() if known in ("AVX2", "AVX-512", "NEON")]
    return f"{name} with {vector[-1]}" if vector else name


def _field(name: str) -> str:
    """Return the first value of a field of /proc/cpuinfo; empty where there is none."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
