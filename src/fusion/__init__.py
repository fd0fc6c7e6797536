"""Fusion and calibration of logits after training; fitted by 04 and applied by 05. No torch."""

from src.fusion.ncm_fusion import NCM_FUSION
from src.fusion.step import Step
from src.fusion.tau_norm import TAU_NORM
from src.fusion.temperature import TEMPERATURE

STEPS: dict[str, Step] = {step.name: step for step in (TAU_NORM, NCM_FUSION, TEMPERATURE)}
